"""A pair with an engine that holds both models: who writes which answer, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from server.config import Settings
from server.core import (
    AnswerRequest,
    ConfigError,
    EngineUnavailable,
    Grammar,
    InvalidRequest,
    Message,
    NudgingConfig,
    SamplingParams,
)
from server.decoding.nudged import Nudged
from server.decoding.speculation.fused import Fused
from server.decoding.stream import whole
from server.engines.base import Engine, EngineInfo
from server.engines.scripted import ScriptedEngine
from server.engines.vllm import build
from server.engines.vllm.backend import LONGER, VLLM
from server.serving.registry import Registry
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO
from tests.fused import PlayedTogether
from tests.noise import noise
from tests.unit.decoding.test_fused import ends

GREEDY = SamplingParams(temperature=0)
BASE, ALIGNED = str(DEMO / "base"), str(DEMO / "aligned")
ENGINES = {
    "base": {"model": BASE},
    "aligned": {"model": ALIGNED},
    "both": {"model": BASE, "drafter": ALIGNED},
}
MODEL = {
    "base": "base",
    "aligned": "aligned",
    "fused": "both",
    "base_prompt": "chat",
    "chat_template": "<|bos|>{{ messages[-1].content }}\n",
}


def settings(engines: dict[str, Any] = ENGINES, **model: Any) -> Settings:
    placed = {name: {"device": "cpu", **each} for name, each in engines.items()}
    return Settings(engines=placed, models={"pair": {**MODEL, **model}})


@asynccontextmanager
async def running(context: int = 512, **model: Any) -> AsyncIterator[Registry]:
    """``context``: of the engine with both models; the others have 512."""
    told = settings(**model)

    async def start(name: str, _: Settings) -> Engine:
        if name == "both":
            one, other = [await start(each, told) for each in ("base", "aligned")]
            one._info = replace(one.info, name="both", context_length=context)
            return PlayedTogether(one, other, drafted=4, prompt=0, longer=told.engines[name].longer)
        own = Tokenizer.load(told.engines[name].model)
        end = own.chat.eos_token_id
        return ScriptedEngine(EngineInfo(name, "noise", 512, own, (end,)), noise(own, end))

    registry = Registry(told, start)
    await registry.start()
    try:
        yield registry
    finally:
        await registry.aclose()


def writer(registry: Registry, request: AnswerRequest, *texts: str, **nudging: Any):
    served = registry.resolve("pair")
    messages = [Message("user", text) for text in texts or ("Hello you",)]
    prompt = registry.prompts(served, messages)
    return registry.writer(served, prompt, request, NudgingConfig(**nudging))


async def test_an_answer_that_one_engine_can_write_is_written_by_it():
    request = AnswerRequest(GREEDY, max_tokens=40)
    async with running() as registry:
        one = writer(registry, request, gamma=0.5)
        assert type(one) is Fused
        together = registry.engines["both"]
        its = await whole(one, request)
        assert together.asked
        assert registry.state == "ready"
    async with running(fused=None) as registry:
        two = writer(registry, request, gamma=0.5)
        assert type(two) is Nudged
        theirs = await whole(two, request)
    assert its[0] == theirs[0]
    assert ends(its[1]) == ends(theirs[1])


@pytest.mark.parametrize(
    ("request_", "nudging", "field"),
    [
        (AnswerRequest(SamplingParams(temperature=0.5)), {}, "temperature"),
        (AnswerRequest(replace(GREEDY, frequency_penalty=1.0)), {}, "frequency_penalty"),
        (AnswerRequest(replace(GREEDY, presence_penalty=1.0)), {}, "presence_penalty"),
        (AnswerRequest(replace(GREEDY, repetition_penalty=1.1)), {}, "repetition_penalty"),
        (AnswerRequest(replace(GREEDY, logit_bias=((5, 1.0),))), {}, "logit_bias"),
        (AnswerRequest(GREEDY, min_tokens=3), {}, "min_tokens"),
        (AnswerRequest(GREEDY, ignore_eos=True), {}, "ignore_eos"),
        (AnswerRequest(GREEDY, grammar=Grammar("{}", field="tools")), {}, "tools"),
        (AnswerRequest(GREEDY), {"end_lookahead": 4}, "nudging.end_lookahead"),
    ],
)
async def test_what_one_engine_cant_is_written_by_the_two_or_refused_by_name(
    request_, nudging, field
):
    async with running() as registry:
        made = writer(registry, request_, **nudging)
        assert type(made) is Nudged
        assert made.base.session.length
        assert not registry.engines["both"].asked
    async with running(mode="fused") as registry:
        with pytest.raises(InvalidRequest, match=rf"{field}.*mode: fused") as refused:
            writer(registry, request_, **nudging)
        assert refused.value.param == field
        assert type(writer(registry, AnswerRequest(GREEDY))) is Fused


LONG = "Be nice. " * (LONGER // 2)


async def test_so_is_what_the_aligned_model_reads_as_a_much_longer_prompt():
    """Where it is longer by little, or shorter by much, one engine has both."""
    template = f"{{% if messages | length > 1 %}}{LONG}{{% endif %}}{{{{ messages[-1].content }}}}"
    async with running(base_prompt=None, chat_template=template) as registry:
        assert type(writer(registry, AnswerRequest(GREEDY))) is Fused
        assert type(writer(registry, AnswerRequest(GREEDY), "Hi", "Hello")) is Nudged
    async with running(base_prompt=f"{LONG}{{{{ question }}}}", chat_template=None) as registry:
        assert type(writer(registry, AnswerRequest(GREEDY))) is Fused


async def test_while_it_is_dead_the_two_write():
    async with running() as registry:
        registry.engines["both"].alive = False
        assert type(writer(registry, AnswerRequest(GREEDY))) is Nudged
        assert registry.state == "degraded"
    async with running(mode="fused") as registry:
        registry.engines["both"].alive = False
        with pytest.raises(EngineUnavailable, match="both"):
            writer(registry, AnswerRequest(GREEDY))
        assert registry.state == "engine_unavailable"


async def test_two_engines_write_where_they_are_to():
    async with running(mode="two_engines") as registry:
        assert type(writer(registry, AnswerRequest(GREEDY))) is Nudged
        registry.engines["both"].alive = False
        assert type(writer(registry, AnswerRequest(GREEDY))) is Nudged


async def test_an_engine_that_dies_ends_its_answers_by_name():
    async with running() as registry:
        made = writer(registry, AnswerRequest(GREEDY))

        async def dies(*_: Any) -> AsyncIterator[Any]:
            raise EngineUnavailable("engine 'both' died")
            yield

        registry.engines["both"].positions = dies
        with pytest.raises(EngineUnavailable, match="both"):
            await whole(made, AnswerRequest(GREEDY))


@pytest.mark.parametrize(
    ("model", "context", "says"),
    [
        (
            {"base_prompt": None, "chat_template": LONG + "{{ messages[-1].content }}"},
            512,
            "128 tokens",
        ),
        ({}, 256, "both has 256, base has 512"),
    ],
)
async def test_a_pair_that_it_could_never_write_for_is_refused(model, context, says):
    with pytest.raises(ConfigError, match=f"models.pair.fused: .*{says}"):
        async with running(context, **model):
            pass


@pytest.mark.parametrize(
    ("engines", "model", "says"),
    [
        ({}, {"fused": "bth"}, "names no engine with two models"),
        ({}, {"fused": "base"}, "there are: both"),
        ({"both": {"model": BASE}}, {}, "none has a drafter"),
        ({"both": {"model": BASE, "drafter": BASE}}, {}, "must have the same models"),
        ({"both": {"model": ALIGNED, "drafter": ALIGNED}}, {}, "must have the same models"),
        ({"base": {"model": BASE, "draft_tokens": 3}}, {}, "no effect without a drafter"),
        (
            {"both": {"model": BASE, "drafter": ALIGNED, "args": {"speculative_config": {}}}},
            {},
            "are the drafter's",
        ),
        ({}, {"nudging": {"policy": "reference"}}, "no effect on the policy"),
        ({}, {"fused": None, "mode": "fused"}, "name it in models.pair.fused"),
    ],
)
def test_mistakes_are_told_when_the_configuration_is_read(engines, model, says):
    with pytest.raises(ValueError, match=says):
        settings({**ENGINES, **engines}, **model)


def test_an_engine_with_both_may_be_the_base_engine_too():
    both = {name: ENGINES[name] for name in ("aligned", "both")}
    assert settings(both, base="both").models["pair"].base == "both"


@pytest.mark.parametrize(("version", "fine"), [("0.32.0", True), ("0.33.1", True), ("0.34", False)])
def test_it_is_made_for_some_vllms(monkeypatch: pytest.MonkeyPatch, version: str, fine: bool):
    monkeypatch.setattr(build, "installed", lambda: build.Vllm(version, cpu=True))
    told = list(VLLM.problems(settings().engines))
    assert (not told) == fine
    assert fine or "engines.both.drafter" in told[0]
