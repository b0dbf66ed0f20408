"""The process in which schemas are compiled: one that forks a child for each, with limits.

Run as ``python -m server.text.grammar.helper FD`` by `compiler`. What a schema does to native code
ends a child, and nothing else. Knows: its two kinds of messages, and what a child may
use. Does not know: what becomes of a result.

Through the control socket (its file descriptor is ``FD``) come single bytes, each with a file
descriptor: ``V``, from which a vocabulary is to be read, and ``J``, from which a child reads a job
and to which it writes the result, both as JSON. Without a result the job was too much for it.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import socket
import sys
from typing import Any

from server.core import Grammar
from server.text.grammar.follow import Vocabulary
from server.text.grammar.schema import Refused
from server.text.grammar.vetting import bytes_alone, matches, vet, vet_lark, vet_regex

CPU_S = 3
"""Of a child; then the kernel kills it."""
WALL_S = 30
MEMORY = 2**30
"""Bytes that a child may take on top of what it was forked with."""


def serve(control: socket.socket) -> None:
    """Until the other end is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    bytes_alone()
    vocabularies: list[Vocabulary] = []
    while True:
        message, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not message or not handles:
            return
        if message == b"V":
            with open(handles[0], "rb") as data:
                vocabularies.append(_vocabulary(*pickle.load(data)))
            continue
        if os.fork() == 0:
            try:
                control.close()
                _work(handles[0], vocabularies)
            finally:
                os._exit(0)
        os.close(handles[0])


def _work(handle: int, vocabularies: list[Vocabulary]) -> None:
    """One job, in a child."""
    os.nice(10)
    signal.alarm(WALL_S)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    with open("/proc/self/statm") as statm:
        most = int(statm.read().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what native code says when it dies
    with socket.socket(fileno=handle) as channel, channel.makefile("rb") as data:
        job = json.load(data)
        result = json.dumps(_result(job, vocabularies))
        channel.sendall(result.encode())


def _result(job: dict[str, Any], vocabularies: list[Vocabulary]) -> dict[str, Any]:
    if "text" in job:
        return {"matches": matches(Grammar(job["source"]), job["text"])}
    try:
        if "regex" in job:
            grammar = vet_regex(job["regex"], job["begun"], vocabularies)
        elif "lark" in job:
            begun, opens = job["begun"], job["opens"]
            grammar = vet_lark(job["lark"], job["opening"], opens, begun, vocabularies)
        else:
            tried = [] if job.get("part") else vocabularies
            grammar = vet(job["schema"], job["begun"], tried)
    except Refused as refusal:
        return {"problem": str(refusal)}
    except (MemoryError, RecursionError):
        return {"problem": "it is too large"}
    return {"source": grammar.source, "begun": grammar.begun, "opens": grammar.opens}


def _vocabulary(table: list[bytes], stop_ids: tuple[int, ...]) -> Vocabulary:
    """A model's. What a text is encoded to makes no difference to what is allowed."""
    ids = {data[0]: token for token, data in enumerate(table) if len(data) == 1}

    def encode(text: str) -> list[int]:
        data = text.encode()
        return [ids[byte] for byte in data] if all(byte in ids for byte in data) else []

    return Vocabulary(table, encode, len(table), stop_ids)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
