"""A real ``vllm serve``, as somebody else would run it, with our stop processor."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from server.engines.remote.probe import PLUGIN
from server.engines.vllm.lifeline import SERVER

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-of-the-engine"


@contextmanager
def vllm_serve(model: Path, folder: Path, *args: str, threads: int = 1) -> Iterator[str]:
    """Its url. It asks for `KEY`.

    Args:
        folder: for its log, and what it needs besides.
    """
    path = [str(ROOT), str(_metadata(folder)), os.environ.get("PYTHONPATH", "")]
    env = {name: value for name, value in os.environ.items() if name != SERVER}
    env |= {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "VLLM_USE_V2_MODEL_RUNNER": os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0"),
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_COMPILE_DISABLE": "1",
        "GOMP_SPINCOUNT": "20000",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with socket.socket() as kept, (folder / "vllm.log").open("wb") as log:
        # It takes long to start, and nobody else is to have the port meanwhile.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        command = [str(Path(sys.executable).parent / "vllm"), "serve", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, *PLUGIN.split()]
        command += ["--dtype", "float32", "--max-model-len", "512", "--block-size", "32"]
        command += ["--kv-cache-memory-bytes", str(128 << 20), *args]
        url = f"http://127.0.0.1:{port}"
        process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 480
            while not _answers(url):
                assert process.poll() is None, (folder / "vllm.log").read_text()[-4000:]
                assert time.monotonic() < deadline, "it did not start in time"
                time.sleep(0.5)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _metadata(folder: Path) -> Path:
    """vLLM's command looks for a distribution of that name, and its CPU build has another one."""
    try:
        version("vllm")
    except PackageNotFoundError:
        info = folder / f"vllm-{version('vllm-cpu')}.dist-info"
        info.mkdir(exist_ok=True)
        told = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n"
        (info / "METADATA").write_text(told)
    return folder


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
