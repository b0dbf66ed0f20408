"""The shipped command where neither vLLM nor torch is installed: it serves engines elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO, Server, serve
from tests.unit.engines.remote.fake import Fake

STORY = "Once upon a time there was a fox."
UNSURE = range(9, 16)
"""Where in it the base model is not sure."""


@pytest.fixture
async def engines() -> AsyncIterator[dict[str, Fake]]:
    """Two servers whose models tell the story, from wherever in it their prompt ends."""
    tokenizer = Tokenizer.load(str(DEMO / "aligned"))
    end = tokenizer.chat.eos_token_id

    def teller(unsure: range):
        def distribution(prompt, output):
            text = tokenizer.decode([*prompt, *output])
            written = next(n for n in range(len(STORY), -1, -1) if text.endswith(STORY[:n]))
            if written == len(STORY):
                return [(end, 1.0)]
            token = tokenizer.encode_text(STORY[written:])[0]
            return [(token, 0.2 if written in unsure else 0.9), (end, 0.1)]

        return distribution

    base, aligned = Fake(tokenizer, teller(UNSURE), end), Fake(tokenizer, teller(range(0)), end)
    fakes = {"base": base, "aligned": aligned}
    for name, fake in fakes.items():
        fake.model, fake.context, fake.plugin = name, 2048, name == "base"
        await fake.start()
    yield fakes
    for fake in fakes.values():
        await fake.kill()


async def until_ready(client: httpx.AsyncClient, status: int) -> None:
    async with asyncio.timeout(20):
        while (await client.get("/ready")).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_it_serves_engines_elsewhere_without_vllm_and_torch(
    engines: dict[str, Fake], tmp_path: Path
):
    config = {
        "engines": {
            name: {"backend": "remote", "model": name, "url": fake.url}
            for name, fake in engines.items()
        },
        "models": {"fox": {"base": "base", "aligned": "aligned", "sampling": {"temperature": 0}}},
    }
    (tmp_path / "nudge.yaml").write_text(yaml.safe_dump(config))
    server: Server = await asyncio.to_thread(serve, "--config", str(tmp_path / "nudge.yaml"))
    try:
        assert server.url, server.output
        loaded = await asyncio.to_thread(Path(f"/proc/{server.process.pid}/maps").read_text)
        assert "libtorch" not in loaded
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as client:
            assert (await client.get("/ready")).json() == {"status": "ready"}
            asked = [{"role": "user", "content": "Tell me a story."}]
            body = {"model": "fox", "messages": asked}
            said = (await client.post("/v1/chat/completions", json=body)).json()
            assert said["choices"][0]["message"]["content"] == STORY
            assert said["usage"]["nudging"]["nudged_tokens"] > 0
            streamed = await client.post("/v1/chat/completions", json=body | {"stream": True})
            events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: {")]
            deltas = [json.loads(event)["choices"] for event in events]
            text = "".join(c[0]["delta"].get("content") or "" for c in deltas if c)
            assert text == STORY
            await sessions_go_along(client, engines, body)
            metrics = (await client.get("/metrics")).text
            assert f'nudge_replica_up{{engine="base",url="{engines["base"].url}"}} 1.0' in metrics
            await engines["base"].kill()
            await until_ready(client, 503)
            metrics = (await client.get("/metrics")).text
            assert f'nudge_replica_up{{engine="base",url="{engines["base"].url}"}} 0.0' in metrics
            refused = await client.post("/v1/chat/completions", json=body)
            assert refused.status_code == 503
            assert "can't be reached" in refused.text
            await engines["base"].start()
            await until_ready(client, 200)
            said = (await client.post("/v1/chat/completions", json=body)).json()
            assert said["choices"][0]["message"]["content"] == STORY
    finally:
        server.stop()


async def sessions_go_along(
    client: httpx.AsyncClient, engines: dict[str, Fake], body: dict[str, Any]
) -> None:
    """What a client calls a session is in each request to either engine: of a field, or a header
    in any dialect."""

    async def told(path: str, body: dict[str, Any], header: str | None = None) -> set[str]:
        for fake in engines.values():
            fake.headers.clear()
        headers = {} if header is None else {"X-Session-ID": header}
        answered = await client.post(path, json=body, headers=headers)
        assert answered.status_code == 200, answered.text
        assert all(fake.headers for fake in engines.values())
        return {headers["x-session-id"] for fake in engines.values() for headers in fake.headers}

    chat, asked = "/v1/chat/completions", {"model": "fox", "input": "Tell me a story."}
    assert await told(chat, body | {"session_id": "one"}) == {"one"}
    assert await told(chat, body, "two") == {"two"}
    assert await told(chat, body | {"session_id": "one"}, "two") == {"one"}
    assert await told("/v1/responses", asked, "three") == {"three"}
    assert not await told(chat, body) & {"one", "two", "three"}
    for wrong in (
        await client.post(chat, json=body | {"session_id": "a\nb"}),
        await client.post(chat, json=body | {"session_id": ""}),
        await client.post(chat, json=body, headers={"X-Session-ID": "a b"}),
    ):
        assert wrong.status_code == 400
        assert wrong.json()["error"]["param"] == "session_id"
