"""What an engine can't do is refused by name, before a session is opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from server.config import Settings
from server.core import (
    AnswerRequest,
    ConfigError,
    Grammar,
    InvalidRequest,
    Message,
    NudgingConfig,
    SamplingParams,
)
from server.decoding.alone import Alone
from server.decoding.nudged import Nudged
from server.decoding.speculation.verify import Timed
from server.engines.base import ABILITIES
from server.engines.scripted import ScriptedEngine
from server.serving.registry import Registry
from tests.conftest import DEMO

ADJUSTED = {
    "presence_penalty": AnswerRequest(SamplingParams(presence_penalty=1)),
    "frequency_penalty": AnswerRequest(SamplingParams(frequency_penalty=-1)),
    "repetition_penalty": AnswerRequest(SamplingParams(repetition_penalty=1.1)),
    "logit_bias": AnswerRequest(SamplingParams(logit_bias=((5, 1.0),))),
    "min_tokens": AnswerRequest(min_tokens=1),
    "ignore_eos": AnswerRequest(ignore_eos=True),
}
GRAMMAR = AnswerRequest(grammar=Grammar('{"type": "object"}'))


def settings(**pair: Any) -> Settings:
    return Settings(
        engines={
            name: {"backend": "scripted", "model": str(DEMO / name)} for name in ("base", "aligned")
        },
        models={"pair": {"base": "base", "aligned": "aligned", **pair}},
    )


@asynccontextmanager
async def lacking(
    without: Iterable[str], engine: str = "base", **pair: Any
) -> AsyncIterator[Registry]:
    """A pair one of whose engines lacks abilities."""

    async def start(name: str, all_settings: Settings) -> ScriptedEngine:
        made = ScriptedEngine.from_folder(name, all_settings.engines[name].model)
        if name == engine:
            made._info = replace(made.info, abilities=ABILITIES - set(without))
        return made

    registry = Registry(settings(**pair), start)
    await registry.start()
    try:
        yield registry
    finally:
        await registry.aclose()


def write(registry: Registry, request: AnswerRequest, model: str = "pair", **nudging: Any) -> Any:
    served = registry.resolve(model)
    prompt = registry.prompts(served, [Message("user", "Hi")])
    return registry.writer(served, prompt, request, NudgingConfig(**nudging))


@pytest.mark.parametrize("engine", ["base", "aligned"])
@pytest.mark.parametrize(
    ("ability", "field", "request_"),
    [*(("adjust", *each) for each in ADJUSTED.items()), ("grammar", "response_format", GRAMMAR)],
)
async def test_a_field_that_either_engine_cannot_follow_is_named(
    ability: str, field: str, request_: AnswerRequest, engine: str
):
    async with lacking({ability}, engine) as registry:
        for model in ("pair", f"pair:{engine}"):
            with pytest.raises(InvalidRequest, match=f"'{field}'.*engine '{engine}' can't") as told:
                write(registry, request_, model)
            assert told.value.param == field
        other = {"base": "aligned", "aligned": "base"}[engine]
        write(registry, request_, f"pair:{other}")
        write(registry, AnswerRequest())
    async with lacking(ABILITIES - {ability}, engine, verify="off") as registry:
        write(registry, request_)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("echo", AnswerRequest(prompt_logprobs=True)),
        ("max_tokens", AnswerRequest(max_tokens=0)),
    ],
)
async def test_a_prompt_that_cannot_be_scored_is_not_continued(field: str, request_: AnswerRequest):
    async with lacking({"score"}) as registry:
        base, aligned = registry.resolve("pair:base"), registry.resolve("pair:aligned")
        with pytest.raises(InvalidRequest, match=f"'{field}'") as told:
            registry.continuation(base, "Once", request_)
        assert told.value.param == field
        registry.continuation(aligned, "Once", request_)
        assert isinstance(registry.continuation(base, "Once", AnswerRequest()), Alone)


@pytest.mark.parametrize(
    ("policy", "engine", "reads"),
    [
        ("entropy", "base", True),
        ("entropy", "aligned", False),
        ("ensemble", "aligned", True),
        ("nudging", "base", False),
    ],
)
async def test_a_policy_that_reads_whole_distributions_needs_them(
    policy: str, engine: str, reads: bool
):
    if not reads:
        async with lacking({"distribution"}, engine, policies=[policy]) as registry:
            write(registry, AnswerRequest(SamplingParams(temperature=0)), policy=policy)
        return
    with pytest.raises(ConfigError, match=r"models.pair.policies: 'nudging.policy'.*every token"):
        async with lacking({"distribution"}, engine, policies=[policy]):
            pass
    with pytest.raises(ConfigError, match=r"models.pair.nudging.policy: "):
        async with lacking({"distribution"}, engine, nudging={"policy": policy}):
            pass


async def test_drafts_are_checked_by_engines_that_can():
    with pytest.raises(
        ConfigError, match=r"models\.pair\.verify: engine 'base' can't check a draft"
    ):
        async with lacking({"check"}, verify="on"):
            pass
    greedy = AnswerRequest(SamplingParams(temperature=0))
    async with lacking({"check"}, verify="auto") as registry:
        assert type(write(registry, greedy)) is Nudged
    async with lacking((), verify="auto") as registry:
        assert type(write(registry, greedy)) is Timed
