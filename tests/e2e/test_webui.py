"""Open WebUI, as docker/compose.webui.yaml sets it up, against a server with a key.

Not among the tests that run by default: it takes a minute and 2 GB. With Open WebUI installed in an
environment of its own: ``NUDGE_OPEN_WEBUI=/…/bin/open-webui scripts/test -m webui``.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import ROOT, Server, serve
from tests.e2e.test_serve import free_port

pytestmark = pytest.mark.webui

KEY = "a-key-of-the-tests"
CHAT: dict[str, Any] = {"model": "fox", "messages": [{"role": "user", "content": "Tell me."}]}


@pytest.fixture(scope="module")
def nudge() -> Iterator[Server]:
    server = serve(
        "--config",
        str(ROOT / "tests" / "scripted.yaml"),
        env={"NUDGE_SERVER__API_KEYS": json.dumps([KEY])},
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def text(nudge: Server) -> str:
    """What the server itself answers."""
    answer = httpx.post(
        f"{nudge.url}/v1/chat/completions", json=CHAT, headers={"Authorization": f"Bearer {KEY}"}
    )
    content = answer.json()["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    assert content
    return content


@pytest.fixture(scope="module")
def webui(nudge: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of its API, signed in as the first user."""
    command = os.environ.get("NUDGE_OPEN_WEBUI")
    if command is None:
        pytest.skip("NUDGE_OPEN_WEBUI names no open-webui")
    data = tmp_path_factory.mktemp("webui")
    port = free_port()
    compose = yaml.safe_load((ROOT / "docker" / "compose.webui.yaml").read_text("utf-8"))
    shipped = compose["services"]["webui"]["environment"]
    own = {
        "OPENAI_API_BASE_URLS": f"{nudge.url}/v1",
        "OPENAI_API_KEYS": KEY,
        "TASK_MODEL_EXTERNAL": "fox:aligned",
        "DEFAULT_MODELS": "fox",
        "WEBUI_SECRET_KEY": "secret",
    }
    assert own.keys() <= shipped.keys()
    away = {"DATA_DIR": str(data), "OFFLINE_MODE": "true", "HF_HUB_OFFLINE": "1"}
    log = (data / "log").open("w")
    process = subprocess.Popen(
        [command, "serve", "--host", "127.0.0.1", "--port", str(port)],
        cwd=data,
        env=os.environ | shipped | own | away,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_for(client, process, data / "log")
            who = {"name": "A", "email": "a@example.org", "password": "a-Password-1"}
            user = client.post("/api/v1/auths/signup", json=who)
            assert user.status_code == 200, user.text
            client.headers["Authorization"] = f"Bearer {user.json()['token']}"
            yield client
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def wait_for(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise TimeoutError(log.read_text()[-2000:])


def test_it_lists_the_servers_models(webui: httpx.Client):
    listed = {model["id"] for model in webui.get("/api/models").json()["data"]}
    assert {"fox", "fox:base", "fox:aligned"} <= listed


def test_a_chat_is_answered(webui: httpx.Client, text: str):
    answer = webui.post("/api/chat/completions", json=CHAT | {"stream": False})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["choices"][0]["message"]["content"] == text
    assert told["usage"]["nudging"]["nudged_tokens"] > 0


def test_a_chat_is_streamed(webui: httpx.Client, text: str):
    with webui.stream("POST", "/api/chat/completions", json=CHAT | {"stream": True}) as answer:
        assert answer.status_code == 200
        lines = [
            line.removeprefix("data: ") for line in answer.iter_lines() if line[:6] == "data: "
        ]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    pieces = [
        choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk.get("choices", [])
    ]
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 3


def test_titles_come_from_the_aligned_model_alone(webui: httpx.Client):
    title = webui.post("/api/v1/tasks/title/completions", json=CHAT)
    assert title.status_code == 200, title.text
    assert title.json()["model"] == "fox:aligned"
