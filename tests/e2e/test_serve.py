"""The shipped command from start to end: what a person at a terminal has of it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, Server, alive, all_gone, serve
from tests.thorough import thorough


def test_it_shows_progress_and_ends_with_a_curl_line_that_works(live: Server):
    assert "loading base" in live.output
    assert "ready   aligned" in live.output
    curl = next(line for line in live.lines if line.startswith("curl "))
    answer = subprocess.run(
        [*shlex.split(curl), "--silent"], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]


def test_killed_it_leaves_no_process():
    """Nor does it when it is told to end: the fixture `live` and `test_drain` see to that."""
    server = serve("--config", str(ROOT / "tests" / "one.yaml"))
    pids = server.children()
    names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
    assert any(b"EngineCore" in name for name in names)
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    assert all_gone(pids), alive(pids)


def engine_processes(server: Server) -> list[int]:
    """Descendants that are engines: started by multiprocessing, or named by vLLM already."""
    found = []
    for pid in server.children():
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if b"EngineCore" in name or b"spawn_main" in name:
            found.append(pid)
    return found


@thorough
def test_while_the_engines_load_it_answers_and_can_be_ended():
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--port", str(port := free_port())],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = Server(process, url=f"http://127.0.0.1:{port}")
    try:
        wait_for(server.url)
        ready = httpx.get(f"{server.url}/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
        chat = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=chat)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_loading"
        assert refused.headers["retry-after"]
        # Imports start short-lived helpers too (lscpu, a compiler): those are not waited for.
        deadline = time.monotonic() + 120
        while not (pids := engine_processes(server)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert pids
        time.sleep(1)
    finally:
        server.stop(signal.SIGTERM)
    assert all_gone(pids)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError(url)


def test_a_port_that_is_taken_is_said_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve("--port", str(port), ready_in=60)
    assert server.process.wait(10) == 1
    assert f"can't listen on 127.0.0.1:{port}" in server.output
    assert "loading" not in server.output


@pytest.mark.parametrize(("how", "code"), [([], 2), (["--skip-checks"], 1)])
def test_a_model_that_is_not_there_is_one_clear_message(tmp_path: Path, how: list[str], code: int):
    config = tmp_path / "broken.yaml"
    config.write_text(
        "engines: {only: {model: ./nowhere, kv_cache_memory_bytes: 1MiB}}\n"
        "models: {m: {base: only, aligned: only}}\n"
    )
    server = serve("--config", str(config), *how, ready_in=120)
    assert server.process.wait(30) == code
    errors = [line for line in server.lines if line.startswith("error")]
    assert len(errors) == 1
    assert "nowhere" in errors[0]


def test_the_scripts_are_executable_and_quick_when_the_environment_is_made():
    if not (ROOT / ".venv" / ".made-from").exists():
        pytest.skip("the environment was not made by scripts/env")
    before = time.monotonic()
    done = subprocess.run(
        [ROOT / "scripts" / "env"], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == done.stderr == ""
    assert time.monotonic() - before < 5


def test_a_streams_packets_do_not_wait_for_one_another():
    """Without it each first token comes 40 ms late: the client puts off its acknowledgements."""
    from server.cli.serve import _listen

    with _listen("127.0.0.1", 0) as listening, socket.socket() as client:
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_terminal_shows_the_servers_own_lines_alone(live: Server):
    """What vLLM and torch have to say of themselves is nothing to do for whoever starts it."""
    started = [line for line in live.lines if "ready in" not in line]
    shown = started[: next(n for n, line in enumerate(live.lines) if "ready in" in line)]
    assert len(shown) >= 5
    own = ("nudge ", "  loading ", "  ready ", "warning ")
    others = [line for line in shown if line.strip() and not line.startswith(own)]
    engines = [line for line in others if " INFO nudge [-] engine '" in line]
    assert others == engines  # what each engine runs as, in the server's own words
    assert len(engines) == 2
