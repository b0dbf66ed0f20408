"""Drafts that are checked in one pass: the same answers as without, on engines made of noise."""

from __future__ import annotations

import functools
import random
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.config import ModelSettings, Settings
from server.core import (
    AnswerRequest,
    ConfigError,
    EngineUnavailable,
    Finished,
    Grammar,
    Message,
    NudgingConfig,
    PromptPair,
    SamplingParams,
)
from server.decoding.nudged import Nudged
from server.decoding.speculation.drafts import can_draft
from server.decoding.speculation.predraft import ReadAlong
from server.decoding.speculation.verify import Faster, Timed, Verified
from server.decoding.stream import Writer, stream
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine, ScriptedSettings, scripted_text
from server.serving.registry import Registry
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO, pieces_of

GREEDY = SamplingParams(temperature=0)


@functools.cache
def tokenizer(folder: str = "aligned") -> Tokenizer:
    return Tokenizer.load(str(DEMO / folder))


@functools.cache
def words() -> list[int]:
    own = tokenizer()
    fox = own.encode_text(" 🦊 你好 \n\n")  # tokens that hold no whole character, and newlines
    return [*[i for i in range(own.size) if own.token_bytes(i)][::40], *fox * 3]


def pair(seed: int, agree: float, context: int = 512) -> tuple[ScriptedEngine, ScriptedEngine]:
    """Two engines whose tokens depend on all that was written, and are the same where a draw says
    so. Special tokens and stop tokens come too."""
    own = tokenizer()
    end = own.chat.eos_token_id
    special = own.chat.convert_tokens_to_ids("<|im_start|>")

    def distribution(prompt, output, name):
        shared = random.Random(repr([seed, *output]))
        same = shared.random() < agree
        draws = shared if same else random.Random(repr([seed, name, *output]))
        kind = draws.random()
        drawn = end if kind < 0.03 else special if kind < 0.05 else draws.choice(words())
        return [(drawn, random.Random(repr([name, *output])).random())]

    return tuple(
        ScriptedEngine(
            EngineInfo(name, "noise", context, own, (end,)),
            functools.partial(distribution, name=name),
        )
        for name in ("base", "aligned")
    )


async def told(
    engines: tuple[ScriptedEngine, ScriptedEngine],
    request: AnswerRequest,
    config: NudgingConfig,
    tokens: int,
    prompt: str = "Hi",
    eager: bool = False,
) -> tuple[list[tuple[str, str]], Finished, Nudged]:
    given = *engines, PromptPair((prompt,), (f"{prompt} ",)), request, config
    if tokens:
        writer: Nudged = Verified(*given, tokens)
    else:
        writer = ReadAlong(*given) if eager else Nudged(*given)
    spans: list[tuple[str, str]] = []
    async with aclosing(stream(writer, request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return spans, event, writer
            if spans and spans[-1][0] == event.speaker:
                spans[-1] = (event.speaker, spans[-1][1] + event.text)
            else:
                spans.append((event.speaker, event.text))
    raise AssertionError("no Finished")


@given(
    seed=st.integers(0, 10**6),
    agree=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    gamma=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0, 1.5]),
    tokens=st.integers(1, 20),
    lookahead=st.sampled_from([0, 0, 3, 16]),
    start=st.sampled_from(["aligned", "base"]),
    most=st.sampled_from([1, 7, 60]),
    context=st.sampled_from([20, 512]),
    prompt=st.sampled_from(["Hi", "Hi "]),
    stops=st.sampled_from([(), (300, 340, 380)]),
)
async def test_the_answer_is_the_same(
    seed, agree, gamma, tokens, lookahead, start, most, context, prompt, stops
):
    request = AnswerRequest(GREEDY, max_tokens=most, stop_token_ids=stops)
    config = NudgingConfig(gamma=gamma, end_lookahead=lookahead, start=start)
    engines = pair(seed, agree, context)
    plain, end, _ = await told(engines, request, config, 0, prompt)
    checked, verified_end, _ = await told(engines, request, config, tokens, prompt)
    assert checked == plain
    assert verified_end.stop_reason == end.stop_reason
    assert verified_end.matched == end.matched
    assert counts(verified_end) == counts(end)
    assert not any(engine.running for engine in engines)


def counts(end: Finished) -> tuple[int, int, int]:
    return end.usage.base_tokens, end.usage.aligned_tokens, end.usage.rounds


# A character that is taken back, of which two turns wrote parts.
@example(
    seed=318141,
    agree=0.0,
    gamma=0.2,
    paces=(0.0, 0.0),
    lookahead=3,
    start="aligned",
    context=512,
    stops=(),
)
@given(
    seed=st.integers(0, 10**6),
    agree=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    gamma=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0, 1.5]),
    paces=st.sampled_from([(0.0, 0.0), (0.001, 0.0), (0.0, 0.0005), (0.001, 0.0007)]),
    lookahead=st.sampled_from([0, 0, 3]),
    start=st.sampled_from(["aligned", "base"]),
    context=st.sampled_from([20, 512]),
    stops=st.sampled_from([(), (300, 340, 380)]),
)
async def test_so_is_the_answer_of_a_model_that_reads_along(
    seed, agree, gamma, paces, lookahead, start, context, stops
):
    request = AnswerRequest(GREEDY, max_tokens=25, stop_token_ids=stops)
    config = NudgingConfig(gamma=gamma, end_lookahead=lookahead, start=start)
    engines = pair(seed, agree, context)
    plain, end, _ = await told(engines, request, config, 0)
    for engine, pace in zip(engines, paces, strict=True):
        engine.step_s = pace
    read, read_end, _ = await told(engines, request, config, 0, eager=True)
    assert read == plain
    assert (read_end.stop_reason, read_end.matched) == (end.stop_reason, end.matched)
    assert counts(read_end) == counts(end)
    assert not any(engine.running for engine in engines)


async def test_a_nudge_is_ready_when_it_is_needed():
    """The base model's step takes longer than a word, so no nudge is waited for."""
    own = tokenizer()
    end = own.chat.eos_token_id
    text = "The capital of Galicor is Parford, where the river Ossa flows."
    script = [(word + " ", p) for word in text.split() for p in (0.9,)]
    doubts = [(part, 0.9 if number % 3 else 0.1) for number, (part, _) in enumerate(script)]
    base, aligned = (
        ScriptedEngine(EngineInfo(name, "text", 512, own, (end,)), scripted_text(own, end, said))
        for name, said in (("base", doubts), ("aligned", script))
    )
    base.step_s = 0.02
    writer = ReadAlong(
        base, aligned, PromptPair(("a",), ("a",)), AnswerRequest(GREEDY), NudgingConfig()
    )
    asked: list[int] = []
    real = writer.aligned.session._session  # type: ignore[attr-defined]
    generate = real.generate

    def watched(params):
        asked.append(base.running)
        return generate(params)

    real.generate = watched
    assert "".join([piece.text async for piece in pieces_of(writer)]).strip() == text
    assert writer.usage().rounds >= 3
    # All but the first word were drafted while the base model wrote.
    assert asked[0] == 0
    assert set(asked[1:]) == {1}


async def test_one_step_of_the_base_model_yields_several_tokens():
    own = tokenizer()
    end = own.chat.eos_token_id
    script = [("The capital of Galicor is Parford, where the river Ossa flows.", 0.9)] * 3
    base, aligned = (
        ScriptedEngine(EngineInfo(name, "text", 512, own, (end,)), scripted_text(own, end, script))
        for name in ("base", "aligned")
    )
    _, finished, _ = await told((base, aligned), AnswerRequest(GREEDY), NudgingConfig(), 8)
    usage = finished.usage
    assert usage.completion_tokens > 30
    # Nine positions a step; the first word is not checked, and the end is a step of its own.
    assert usage.base_steps <= usage.completion_tokens / 9 + 2


@pytest.mark.parametrize("dies", [0, 2])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("tokens", [4, 0])
async def test_a_death_is_an_error_and_leaves_nothing(which: int, dies: int, tokens: int):
    engines = pair(3, 0.9)
    engines[which].dies_after = dies
    request, config = AnswerRequest(GREEDY, max_tokens=60), NudgingConfig(gamma=0.5)
    with pytest.raises(EngineUnavailable):
        await told(engines, request, config, tokens, eager=True)
    assert not any(engine.running for engine in engines)


@pytest.mark.parametrize("taken", range(1, 8))
@pytest.mark.parametrize("way", [ReadAlong, lambda *given: Verified(*given, 6)])
async def test_whoever_leaves_stops_both(taken: int, way):
    engines = pair(5, 0.9)
    for engine in engines:
        engine.step_s = 0.0005
    request = AnswerRequest(GREEDY, max_tokens=60)
    writer = way(*engines, PromptPair(("a",), ("a",)), request, NudgingConfig(gamma=0.5))
    async with aclosing(pieces_of(writer)) as pieces:
        for _ in range(taken):
            await anext(pieces, None)
    assert not any(engine.running for engine in engines)
    base = writer.base.session
    assert getattr(base, "_session", base).closed
    assert writer.aligned.session._session.closed  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("request_", "possible"),
    [
        (AnswerRequest(GREEDY), True),
        (AnswerRequest(GREEDY, stop_token_ids=(7,), top_logprobs=3, stop=("x",)), True),
        (AnswerRequest(SamplingParams(temperature=0.1)), False),
        (AnswerRequest(SamplingParams(temperature=0, presence_penalty=1)), False),
        (AnswerRequest(SamplingParams(temperature=0, logit_bias=((7, 1.0),))), False),
        (AnswerRequest(GREEDY, min_tokens=3), False),
        (AnswerRequest(GREEDY, ignore_eos=True), False),
        (AnswerRequest(GREEDY, grammar=Grammar("")), False),
    ],
)
def test_only_plain_greedy_answers_can_be_drafted(request_: AnswerRequest, possible: bool):
    base, aligned = pair(0, 0)
    assert can_draft(request_, base, aligned) is possible
    other = replace(aligned.info, tokenizer=tokenizer("aligned-1k"))
    aligned = ScriptedEngine(other, aligned.distribution)
    assert can_draft(request_, base, aligned) is False


# -- auto ----------------------------------------------------------------------------------------


def chosen(faster: Faster, pace: dict[bool, float], answers: int) -> list[bool]:
    ways = []
    for _ in range(answers):
        ways.append(faster.choose())
        faster.took(ways[-1], 100, 100 * pace[ways[-1]])
    return ways


@pytest.mark.parametrize("best", [True, False])
def test_the_faster_way_is_found_and_the_other_one_tried_again(best: bool):
    ways = chosen(Faster(), {best: 0.01, not best: 0.02}, 200)
    assert set(ways[:2]) == {True, False}
    assert ways[2:].count(not best) == 200 // Faster.RETRY


def test_it_changes_its_mind_when_the_other_way_becomes_faster():
    faster = Faster()
    chosen(faster, {True: 0.01, False: 0.02}, 50)
    later = chosen(faster, {True: 0.04, False: 0.02}, 200)
    assert later[-50:].count(False) > 45


def test_short_answers_tell_nothing():
    faster = Faster()
    faster.took(True, Faster.SHORTEST - 1, 9.0)
    assert faster.choose() is True  # not known yet
    faster.took(True, 100, 9.0)
    assert faster.choose() is False


async def test_an_answer_that_was_left_is_not_measured():
    request = AnswerRequest(GREEDY, max_tokens=60)
    found: list[tuple[int, float]] = []
    for whole in (False, True):
        nudged = Nudged(
            *pair(5, 0.9), PromptPair(("a",), ("a",)), request, NudgingConfig(gamma=0.5)
        )
        writer = Timed(nudged, lambda *took: found.append(took))
        async with aclosing(pieces_of(writer)) as pieces:
            async for _ in pieces:
                if not whole:
                    break
    assert len(found) == 1
    assert found[0][0] == nudged.committed
    assert found[0][1] > 0


@pytest.mark.parametrize(
    ("given_", "meant"), [(True, "on"), (False, "off"), ("auto", "auto"), ("on", "on")]
)
def test_a_bare_on_in_yaml_is_on(given_, meant):
    assert ModelSettings(base="b", aligned="a", verify=given_).verify == meant


# -- which answers are verified ------------------------------------------------------------------


async def running(verify_: str, aligned: str = "aligned", eager: bool = False) -> Registry:
    engines = {
        name: ScriptedSettings(model=str(DEMO / folder))
        for name, folder in (("base", "aligned"), ("aligned", aligned))
    }
    models = {"pair": ModelSettings(base="base", aligned="aligned", verify=verify_, eager=eager)}
    registry = Registry(Settings(engines=engines, models=models))
    await registry.start()
    return registry


def writer(registry: Registry, request: AnswerRequest, **settings) -> Writer:
    served = registry.resolve("pair")
    prompt = registry.prompts(served, [Message("user", "Hi")])
    return registry.writer(served, prompt, request, NudgingConfig(**settings))


def is_verified(writer_: Writer) -> bool:
    return isinstance(writer_.writer if isinstance(writer_, Timed) else writer_, Verified)


async def test_on_verifies_what_can_be_and_off_nothing():
    greedy = AnswerRequest(GREEDY)
    registry = await running("on")
    assert is_verified(writer(registry, greedy))
    assert not is_verified(writer(registry, AnswerRequest()))  # temperature 1
    assert not is_verified(writer(registry, greedy, policy="reference"))
    assert not is_verified(writer(await running("off"), greedy))


async def test_auto_measures_both_ways_and_never_fails():
    registry = await running("auto")
    ways = set()
    for _ in range(2):
        each = writer(registry, AnswerRequest(GREEDY))
        ways.add(is_verified(each))
        assert "".join([piece.text async for piece in pieces_of(each)])
    assert ways == {True, False}
    two_vocabularies = await running("auto", "aligned-1k")
    assert not is_verified(writer(two_vocabularies, AnswerRequest(GREEDY)))


async def test_eager_reads_along_where_nothing_is_verified():
    for settings in ("off", "on"):
        nudged = writer(await running(settings, eager=True), AnswerRequest(GREEDY))
        assert isinstance(nudged, Verified if settings == "on" else ReadAlong)
    with pytest.raises(ConfigError, match=r"models\.pair\.eager needs two models with one"):
        await running("off", "aligned-1k", eager=True)


async def test_on_with_two_vocabularies_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match=r"models\.pair\.verify needs two models with one"):
        await running("on", "aligned-1k")
