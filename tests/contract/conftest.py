"""Every engine there is, and how a turn of one is run.

Of the three models on vLLM two are enough here, which differ in everything: size, vocabulary,
special tokens, where they end. The third, `aligned`, writes in the pairs of `test_laws` and
`test_resumable`.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from server.core import SamplingParams, TokenIds
from server.engines.base import Engine, EngineInfo, Session, Token, TurnEnd, TurnParams
from server.engines.scripted import ScriptedEngine
from server.engines.vllm.engine import VllmEngine
from server.serving.registry import Registry
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO
from tests.modes import schedules_ahead

GREEDY = SamplingParams(temperature=0)
PROMPTS = ["Question: What is the capital of Galicor?\nAnswer:", "Once", "The river"]


def noise(tokenizer: Tokenizer, end: int):
    """A distribution that depends on the whole context and on nothing else."""
    ids = [i for i in range(tokenizer.size) if tokenizer.token_bytes(i)]

    def distribution(prompt, output):
        draws = random.Random(repr([*prompt, *output]))
        if draws.random() < 0.05:
            return [(end, 1.0)]
        first = draws.uniform(0.05, 1)
        one, two, three = draws.sample(ids, 3)
        rest = min(1 - first, first / 2)
        return [(one, first), (two, rest * 0.6), (three, rest * 0.4)]

    return distribution


def scripted_engine(context_length: int = 512) -> ScriptedEngine:
    tokenizer = Tokenizer.load(str(DEMO / "aligned"))
    end = tokenizer.chat.eos_token_id
    info = EngineInfo("scripted", "noise", context_length, tokenizer, (end,))
    return ScriptedEngine(info, noise(tokenizer, end))


@pytest.fixture(autouse=True)
async def closed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Sessions hold places in an engine until they are closed: none outlives its test."""
    sessions: list[Session] = []
    really_open = VllmEngine.open

    def noted(engine: VllmEngine, prompt: TokenIds) -> Session:
        sessions.append(really_open(engine, prompt))
        return sessions[-1]

    monkeypatch.setattr(VllmEngine, "open", noted)
    yield
    for session in sessions:
        await session.aclose()


@pytest.fixture(params=["scripted", "vllm base", "vllm aligned-1k"])
async def engine(request: pytest.FixtureRequest, registry: Registry) -> Engine:
    kind, _, name = request.param.partition(" ")
    return scripted_engine() if kind == "scripted" else registry.engines[name]


@pytest.fixture(params=["base", "aligned-1k"])
async def real(request: pytest.FixtureRequest, registry: Registry) -> Engine:
    return registry.engines[request.param]


async def run(session: Session, params: TurnParams) -> tuple[list[Token], TurnEnd]:
    """One turn; fails unless exactly one `TurnEnd` comes, last."""
    tokens: list[Token] = []
    ends: list[TurnEnd] = []
    async with aclosing(session.generate(params)) as events:
        async for event in events:
            assert not ends, "something came after the end of the turn"
            if isinstance(event, TurnEnd):
                ends.append(event)
            else:
                tokens.append(event)
    assert len(ends) == 1
    return tokens, ends[0]


def ahead(engine: Engine) -> int:
    """Steps that are in flight behind one that ends a turn."""
    return int(isinstance(engine, VllmEngine) and schedules_ahead())


def opened(engine: Engine, prompt: str) -> Session:
    return engine.open(engine.info.tokenizer.encode_prompt(prompt))


async def plain(engine: Engine, prompt: str, count: int = 40) -> list[Token]:
    """Ordinary greedy decoding."""
    return (await run(opened(engine, prompt), TurnParams(GREEDY, max_tokens=count)))[0]


def ids(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]
