"""The processes of an engine: what they inherit, and how they are killed.

Knows: signals, the environment, /proc. Does not know: vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Collection, Iterator
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

GIVE_UP_S = 30.0
"""How long a start that was given up is waited for, which may have no process yet to kill."""


def kill(pid: int) -> None:
    """A process and all that it started: also such as are stopped, and can't notice its end."""
    family = [pid]
    for each in family:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                family += map(int, (task / "children").read_text().split())
    for each in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


async def given_up(loading: asyncio.Task[Any], others: Collection[BaseProcess]) -> None:
    """Leave nothing of a start. A thread can't be cancelled, but its constructor fails once its
    child is dead; it may have none yet, and then has one soon.

    Args:
        loading: the start.
        others: the processes that are not its.
    """
    asked = time.monotonic()
    done = False
    while not done and time.monotonic() < asked + GIVE_UP_S:
        done = bool((await asyncio.wait({loading}, timeout=0.1))[0])
        for child in multiprocessing.active_children():
            if child not in others:
                child.kill()
                await asyncio.to_thread(child.join, 1)


@contextlib.contextmanager
def no_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process in the terminal's foreground, and would end the engines under
    answers that the server means to finish. They inherit this thread's signal mask."""
    resource_tracker.ensure_running()  # its start would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def environment(name: str, value: str | None) -> Iterator[None]:
    """A variable for the engine process, which inherits it when it is spawned; None: as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif value is not None:
            del os.environ[name]
