"""Counting says what an answer would read, also while another model stands in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from server import config
from server.api.app import create_app
from server.serving.registry import Registry
from tests.conftest import ROOT

Json = dict[str, Any]

ASK: Json = {"model": "fox", "messages": [{"role": "user", "content": "Tell me a story."}]}


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    settings = config.load(ROOT / "tests" / "scripted.yaml")
    fox = settings.models["fox"].model_copy(update={"degraded": "aligned"})
    engines = {name: settings.engines[name] for name in ("base", "aligned")}
    running = Registry(settings.model_copy(update={"models": {"fox": fox}, "engines": engines}))
    await running.start()
    yield running
    await running.aclose()


async def counted(client: httpx.AsyncClient, **more: Any) -> int:
    """By the route, and by an answer."""
    count = await client.post("/v1/messages/count_tokens", json=ASK | more)
    answer = await client.post("/v1/messages", json=ASK | more | {"max_tokens": 1})
    assert count.json()["input_tokens"] == answer.json()["usage"]["input_tokens"]
    return int(count.json()["input_tokens"])


async def test_what_stands_in_is_counted(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    app = create_app(registry, start=asyncio.Event().wait)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        alone = await counted(client, model="fox:aligned")
        assert await counted(client) == await counted(client, model="fox:base") != alone
        monkeypatch.setattr(registry.engines, "lives", lambda name: name != "base")
        assert await counted(client) == alone
