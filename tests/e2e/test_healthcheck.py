"""The containers' health check against a server that comes, is ready, and goes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import httpx

from tests.conftest import ROOT, serve


def health(port: int, **env: str) -> int:
    command = [sys.executable, str(ROOT / "docker" / "healthcheck.py")]
    env = os.environ | {"NUDGE_SERVER__PORT": str(port), **env}
    return subprocess.run(command, env=env, timeout=20, check=False).returncode


def test_the_health_check_follows_readiness():
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobodys = free.getsockname()[1]
    assert health(nobodys) == 1
    server = serve("--config", str(ROOT / "tests" / "scripted.yaml"))
    port = int(server.url.rpartition(":")[2])
    chat = {"model": "endless", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    try:
        assert health(port) == 0
        # A proxy for the hub is not asked for this machine.
        assert health(port, http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9") == 0
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=chat) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            while "finishing 1 answer" not in server.output:
                next(lines)
            assert health(port) == 1, "it is draining"
    finally:
        server.stop(signal.SIGINT)
