"""Who dies with the server: the processes of its host, and nobody elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from server.engines.vllm import lifeline

PROGRAM = (
    "from server.engines.vllm.lifeline import die_with_server; import time; "
    "die_with_server(); print('up', flush=True); time.sleep(60)"
)


def engine(told: str) -> subprocess.Popen[str]:
    """A process that was told of a server, once it watches."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {lifeline.SERVER: told},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() in ("up\n", "")
    return process


@pytest.fixture
def server():
    """A process that stands for the server."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_it_ends_with_the_server_of_its_host(server: subprocess.Popen[bytes]):
    _, _, host = lifeline.this_process().partition(" ")
    with engine(f"{server.pid} {host}") as process:
        time.sleep(0.2)
        assert process.poll() is None
        server.kill()
        server.wait()
        assert process.wait(10) == 1


def test_a_server_that_is_gone_already_ends_it(server: subprocess.Popen[bytes]):
    _, _, host = lifeline.this_process().partition(" ")
    server.kill()
    server.wait()
    with engine(f"{server.pid} {host}") as process:
        assert process.wait(10) == 1


@pytest.mark.parametrize("at", [0, 1])
def test_on_another_host_or_after_another_boot_the_pid_means_nothing(
    server: subprocess.Popen[bytes], at: int
):
    host = lifeline.this_process().split()[1:]
    host[at] += "-other"
    server.kill()
    server.wait()
    with engine(f"{server.pid} {' '.join(host)}") as process:
        time.sleep(0.5)
        assert process.poll() is None
        process.kill()


def test_a_process_that_was_told_of_none_goes_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(lifeline.SERVER, raising=False)
    lifeline.die_with_server()
    assert os.getpid() not in lifeline._watching
