"""Engines and servers that several kinds of tests share.

Real vLLM engines take tens of seconds to start, so there is one pair in this process and one
server, each for the whole session.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings

from server.config import load
from server.core import AnswerRequest, Piece
from server.decoding.stream import Writer, stream
from server.serving.registry import Registry
from tests import modes

modes.enter()

# What commands say is looked for in one piece, however long the folder's name is.
os.environ["COLUMNS"] = "250"

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models" / "demo"
CONFIGS = ROOT / "configs"

SHARED = ("registry", "live")
"""Fixtures that start engines for the whole session."""

REPEATABLE = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""Of laws about a live server: the same examples every time, however long each takes."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares engines is one group, so that of two processes (``--dist loadgroup``) only one
    starts them; they are the longest groups, and come first. Any other file is one."""

    def group(item: pytest.Item) -> str:
        names = getattr(item, "fixturenames", ())
        return next((name for name in SHARED if name in names), item.location[0])

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: [name != group(item) for name in SHARED])


def pytest_collection_finish(session: pytest.Session) -> None:
    """xdist names the groups in its tests' ids; one that can't would start everything twice."""
    if getattr(session.config.option, "loadgroup", False):
        assert all("@" in item.nodeid for item in session.items), "tests aren't grouped"


@pytest.fixture(scope="session")
async def registry() -> AsyncIterator[Registry]:
    """Real engines in this process: the demo pair, and the one with two tokenizers."""
    running = Registry(load(ROOT / "tests" / "pairs.yaml"))
    await running.start()
    yield running
    await running.aclose()


@dataclass
class Server:
    """The shipped command, running."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def children(self) -> list[int]:
        """Pids of every descendant."""
        found, frontier = [], [self.process.pid]
        while frontier:
            pid = frontier.pop()
            # Threads and processes may end while they are looked at.
            with suppress(FileNotFoundError, ProcessLookupError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with suppress(FileNotFoundError, ProcessLookupError):
                        children = [int(each) for each in (task / "children").read_text().split()]
                        found += children
                        frontier += children
        return found

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 30) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(timeout)


def alive(pids: list[int]) -> list[int]:
    """Those that still run (a zombie does not)."""
    running = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            running.append(pid)
    return running


def all_gone(pids: list[int], within: float = 10) -> bool:
    deadline = time.monotonic() + within
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pids)


def needs_vllm(args: Sequence[str]) -> bool:
    """Whether a server with these arguments has an engine of vLLM's."""
    if "--config" not in args:
        return True
    with suppress(OSError, yaml.YAMLError, AttributeError):
        engines = yaml.safe_load(Path(args[args.index("--config") + 1]).read_text())["engines"]
        return any(engine.get("backend", "vllm") == "vllm" for engine in engines.values())
    return False  # it won't get that far


def serve(*args: str, env: dict[str, str] | None = None, ready_in: float = 240) -> Server:
    """Start ``nudge serve`` on a free port and wait until it says that it is ready.

    Returns early if it ends before that. Where no engine is vLLM's it runs as where that and torch
    aren't installed, which it starts five seconds sooner by.
    """
    if not needs_vllm(args):
        path = [str(modes.HERE / "orchestrator"), os.environ.get("PYTHONPATH", "")]
        env = {"PYTHONPATH": os.pathsep.join(filter(None, path))} | (env or {})
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--port", "0", *args],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "400"} | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Server(process)
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            server.lines.append(line)
            if found := re.search(r"ready in .* on (http://\S+)/v1", line):
                server.url = found[1]
            if line.startswith("curl ") or not process.stdout.readable():
                ready.set()
        ready.set()
        process.stdout.close()

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(ready_in):
        process.kill()
        raise TimeoutError(f"the server was not ready in {ready_in} s:\n{server.output}")
    return server


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shipped command on the demo pair, with real engines, as on its first start, where vLLM
    has nothing in its cache. It serves a slow mixture too."""
    policies = '["nudging", "entropy", "reference", "ensemble"]'
    cache = str(tmp_path_factory.mktemp("cache"))
    server = serve(env={"NUDGE_MODELS__DEMO__POLICIES": policies, "VLLM_CACHE_ROOT": cache})
    assert server.url, server.output
    yield server
    pids = server.children()
    assert server.stop() == 0, server.output
    assert all_gone(pids), f"the server has ended, and left {alive(pids)}"


async def pieces_of(writer: Writer) -> AsyncGenerator[Piece]:
    """A writer's own pieces, before anything is held back."""
    async with aclosing(stream(writer, AnswerRequest())) as events:
        async for event in events:
            if isinstance(event, Piece):
                yield event


SCRIPTED = str(ROOT / "tests" / "scripted.yaml")


@pytest.fixture(scope="session")
def scripted() -> Iterator[Server]:
    """The shipped command on scripted engines: slow on purpose, and ready at once."""
    server = serve("--config", SCRIPTED)
    assert server.url, server.output
    yield server
    server.stop()


KEY = "sk-scripted"


@pytest.fixture(scope="session")
def keyed() -> Iterator[Server]:
    """The same, for whoever has `KEY`."""
    server = serve("--config", SCRIPTED, env={"NUDGE_SERVER__API_KEYS": f'["{KEY}"]'})
    assert server.url, server.output
    yield server
    server.stop()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, encrypted with "word"."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    asked = "req -x509 -newkey rsa:2048 -days 2 -subj /CN=test -passout pass:word"
    asked += f" -addext subjectAltName=IP:127.0.0.1 -out {cert} -keyout {key}"
    subprocess.run(["openssl", *asked.split()], check=True, capture_output=True)
    return cert, key
