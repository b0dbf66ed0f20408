"""Whole answers with an engine on ``vllm serve``: those of local engines, token for token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
import pytest

from server.config import Settings
from server.core import AnswerRequest, InvalidRequest, Message, NudgingConfig, Piece, SamplingParams
from server.decoding.stream import stream
from server.engines.base import Engine, TurnParams
from server.engines.remote.backend import RemoteSettings
from server.serving.registry import Registry
from server.text.grammar.vetting import compile_schema
from tests.conftest import DEMO
from tests.contract.conftest import WAYS, remote_engine
from tests.thorough import first

GREEDY = SamplingParams(temperature=0)
QUESTIONS = [
    "What is the capital of Galicor?",
    "Hello!",
    "Tom has 12 plums and buys 7 more. How many?",
]


@pytest.fixture(params=WAYS)
async def mixed(
    request: pytest.FixtureRequest, registry: Registry, served: str, remotes: dict[str, Engine]
) -> AsyncIterator[Registry]:
    """A remote base engine beside the local aligned ones."""
    name = request.param
    if name not in remotes:
        remotes[name] = await remote_engine(served, name)
    engines = dict(registry.engines) | {"base": remotes[name]}

    async def start(engine: str, _: Settings) -> Engine:
        return engines[engine]

    there = RemoteSettings(model=str(DEMO / "base"), url=served)
    settings = registry.settings.model_copy(
        update={"engines": {**registry.settings.engines, "base": there}}
    )
    made = Registry(settings, start)
    await made.start()
    yield made
    await made.grammars.aclose()  # the engines are others'


async def answer(
    registry: Registry, name: str, question: str, request: AnswerRequest, gamma: float
) -> list[tuple[str, str]]:
    served = registry.resolve(name)
    prompt = registry.prompts(served, [Message("user", question)])
    writer = registry.writer(served, prompt, request, NudgingConfig(gamma=gamma))
    async with aclosing(stream(writer, request)) as events:
        return [(e.speaker, e.text) async for e in events if isinstance(e, Piece)]


@pytest.mark.parametrize("name", ["demo", "cross"])
@pytest.mark.parametrize("gamma", first(1, [0.8, 0.3]))
async def test_nudged_answers_are_those_of_local_engines(
    registry: Registry, mixed: Registry, name: str, gamma: float
):
    request = AnswerRequest(GREEDY, max_tokens=40)
    asked = [(name, question, request, gamma) for question in QUESTIONS]
    expected = await asyncio.gather(*(answer(registry, *each) for each in asked))
    got = await asyncio.gather(*(answer(mixed, *each) for each in asked))
    assert got == expected
    assert {speaker for each in got for speaker, _ in each} == {"base", "aligned"}


async def test_penalties_and_schemas_work_with_the_processor_and_are_refused_without(
    registry: Registry, mixed: Registry
):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wishes = {
        "frequency_penalty": AnswerRequest(
            SamplingParams(temperature=0, frequency_penalty=1.0), max_tokens=30
        ),
        "response_format": AnswerRequest(GREEDY, max_tokens=30, grammar=compile_schema(schema)),
    }
    can = mixed.engines["base"].info.abilities
    for field, request in wishes.items():
        if "adjust" in can:
            expected = await answer(registry, "demo", QUESTIONS[0], request, 0.4)
            assert await answer(mixed, "demo", QUESTIONS[0], request, 0.4) == expected
        else:
            with pytest.raises(InvalidRequest, match=f"'{field}' is not served.*'base'"):
                await answer(mixed, "demo", QUESTIONS[0], request, 0.4)


@pytest.mark.parametrize("stops", WAYS)
async def test_a_turn_that_is_left_frees_the_server_within_a_second(
    served: str, remotes: dict[str, Engine], stops: str
):
    if stops not in remotes:
        remotes[stops] = await remote_engine(served, stops)
    engine = remotes[stops]
    session = engine.open(engine.info.tokenizer.encode_prompt("Once"))
    sampling = SamplingParams(temperature=2.0, seed=5)
    events = session.generate(TurnParams(sampling, max_tokens=400, ends=()))
    await anext(events)
    assert await running(served) == 1
    await events.aclose()
    left = time.monotonic()
    while await running(served):
        assert time.monotonic() - left < 1
        await asyncio.sleep(0.05)
    await session.aclose()


async def running(url: str) -> int:
    """Requests in the server, by its own metrics."""
    async with httpx.AsyncClient(trust_env=False) as client:
        told = (await client.get(f"{url}/metrics")).text
    lines = [line for line in told.splitlines() if line.startswith("vllm:num_requests_running{")]
    return int(float(lines[0].rpartition(" ")[2]))
