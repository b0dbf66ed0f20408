"""Servers that fail on purpose, and engines on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from server.core import SamplingParams
from server.engines.base import EngineInfo, Token, TurnEnd, TurnParams, collect
from server.engines.remote import starting
from server.engines.remote.backend import RemoteSettings
from server.engines.remote.engine import RemoteEngine
from server.engines.scripted import ScriptedEngine
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO
from tests.noise import noise
from tests.unit.engines.remote.fake import Fake

GREEDY = SamplingParams(temperature=0)
FOLDER = str(DEMO / "aligned")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(FOLDER)


@pytest.fixture(scope="session")
def local(tokenizer: Tokenizer) -> ScriptedEngine:
    """The same model in this process."""
    end = tokenizer.chat.eos_token_id
    return ScriptedEngine(EngineInfo("local", "m", 512, tokenizer, (end,)), noise(tokenizer, end))


@pytest.fixture
async def servers(tokenizer: Tokenizer) -> AsyncIterator[Callable[..., Awaitable[Fake]]]:
    """Starts one; what it is told is `Fake`'s."""
    started: list[Fake] = []
    end = tokenizer.chat.eos_token_id

    async def start(**how: Any) -> Fake:
        started.append(await Fake(tokenizer, noise(tokenizer, end), end, **how).start())
        return started[-1]

    yield start
    for each in started:
        await each.kill()


@pytest.fixture
async def engines() -> AsyncIterator[Callable[..., Awaitable[RemoteEngine]]]:
    """Starts an engine on servers."""
    started: list[RemoteEngine] = []

    async def start(*fakes: Fake | str, **how: Any) -> RemoteEngine:
        urls = [each if isinstance(each, str) else each.url for each in fakes]
        settings = RemoteSettings(
            **{
                "model": "m",
                "urls": urls,
                "tokenizer": FOLDER,
                "start_timeout_s": 0.1,
                "health_interval_s": 0.1,
                **how,
            }
        )
        started.append(await starting.start("base", settings, 1))
        return started[-1]

    yield start
    for each in started:
        await each.aclose()


TURNS = {
    "plain": TurnParams(GREEDY, max_tokens=20),
    "below": TurnParams(GREEDY, max_tokens=20, stop_below=0.4),
    "word": TurnParams(GREEDY, max_tokens=16, word=()),
    "silent": TurnParams(GREEDY, max_tokens=20, top=0),
}


async def turn(engine: Any, prompt: str, params: TurnParams) -> tuple[list[Token], TurnEnd]:
    session = engine.open(engine.info.tokenizer.encode_prompt(prompt))
    try:
        return await collect(session, params)
    finally:
        await session.aclose()


def written(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]
