"""The mixtures, on distributions and scripted engines: every probability is chosen here."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import Settings, load
from server.core import (
    AnswerRequest,
    ConfigError,
    ContextLengthExceeded,
    EngineUnavailable,
    Finished,
    InvalidRequest,
    Message,
    NudgingConfig,
    Piece,
    PromptPair,
    SamplingParams,
)
from server.decoding.mixtures import Mixed, ensemble, log_probs, proxy_tuned
from server.decoding.stream import stream, whole
from server.engines.base import EngineInfo, Token
from server.engines.scripted import ScriptedEngine
from server.serving.registry import Registry
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

GREEDY = AnswerRequest(SamplingParams(temperature=0))
TOKENIZER = Tokenizer.load(str(DEMO / "aligned"))
END = TOKENIZER.chat.convert_tokens_to_ids("<|endoftext|>")
TURN_END = TOKENIZER.chat.convert_tokens_to_ids("<|im_end|>")
MARK = TOKENIZER.chat.convert_tokens_to_ids("<|im_start|>")

Row = dict[str | int, float]
"""The probabilities of a position, by a token's text or id."""


def engine(*rows: Row, stop: int = END, context: int = 2048, **options) -> ScriptedEngine:
    """Plays one row after the other, by how many tokens follow the prompt; then the turn ends.

    stop: the model's own end.
    """

    def number(token: str | int) -> int:
        if isinstance(token, int):
            return token
        [only] = TOKENIZER.encode_text(token)
        return only

    played = [
        sorted(((number(token), p) for token, p in row.items()), key=lambda each: -each[1])
        for row in rows
    ]

    def distribution(prompt, output):
        return played[len(output)] if len(output) < len(played) else [(TURN_END, 1.0)]

    info = EngineInfo("scripted", "rows", context, TOKENIZER, (stop,))
    return ScriptedEngine(info, distribution, **options)


def mixed(base, aligned, untuned=None, request=GREEDY, prompts=("q", "q")) -> Mixed:
    policy = "ensemble" if untuned is None else "proxy_tuning"
    pair = PromptPair((prompts[0],), (prompts[1],))
    return Mixed(base, aligned, untuned, pair, request, NudgingConfig(policy=policy))


async def told(writer: Mixed, request=GREEDY) -> tuple[list[Piece], Finished]:
    return await whole(writer, request)


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def rows(*texts: str) -> list[Row]:
    return [{each: 1.0} for each in texts]


# -- the mixtures themselves ----------------------------------------------------------------------

logits = st.lists(st.floats(-30, 30), min_size=6, max_size=6)


def normalized(values: list[float]) -> np.ndarray:
    array = np.array(values)
    return array - np.logaddexp.reduce(array)


@given(logits, logits)
def test_an_ensemble_is_the_mean_of_the_probabilities(one: list[float], two: list[float]):
    b, a = normalized(one), normalized(two)
    mean = np.exp(ensemble(b, a))
    assert mean == pytest.approx((np.exp(b) + np.exp(a)) / 2, abs=1e-12)
    assert mean.sum() == pytest.approx(1)


@given(logits, logits, logits)
def test_proxy_tuning_adds_what_alignment_did(one, two, three):
    b, a, u = map(normalized, (one, two, three))
    mixture = proxy_tuned(b, a, u)
    assert np.exp(mixture).sum() == pytest.approx(1)
    # The same up to one constant, which is what logits are.
    constant = mixture - (np.array(one) + np.array(two) - np.array(three))
    assert constant == pytest.approx(constant[0], abs=1e-9)


@given(logits, logits)
def test_laws_of_proxy_tuning(one, two):
    b, a = normalized(one), normalized(two)
    assert proxy_tuned(b, a, b) == pytest.approx(a, abs=1e-9)  # the untuned model is the base
    assert proxy_tuned(b, a, a) == pytest.approx(b, abs=1e-9)  # alignment did nothing


def test_a_token_of_probability_0_leaves_no_nan():
    never = np.array([0.0, -np.inf])
    assert not np.isnan(proxy_tuned(never, normalized([1, 2]), never)).any()
    assert ensemble(never, never).tolist() == [0.0, -np.inf]


def test_padding_of_a_model_is_no_token():
    look = Token(1, 0.0, ((1, -0.1), (700, -3.0)))
    assert log_probs(look, 3).tolist() == [-math.inf, -0.1, -math.inf]


# -- answers --------------------------------------------------------------------------------------


async def test_the_mean_decides_and_each_token_has_its_speaker():
    base = engine(
        {" a": 0.6, " b": 0.4},
        {" c": 0.6, " d": 0.4},
        {" e": 0.5, " f": 0.45},
        {" h": 0.5, " i": 0.5},
    )
    aligned = engine(
        {" b": 0.9, " a": 0.1},
        {" c": 0.9, " d": 0.1},
        {" f": 0.5, " g": 0.5},
        {" i": 0.9, " a": 0.1},
        stop=TURN_END,
    )
    pieces, finished = await told(mixed(base, aligned))
    assert [(p.speaker, p.text) for p in pieces] == [
        ("aligned", " b"),  # 0.65 against 0.35
        ("base", " c"),  # both models' own, though the aligned one is surer
        ("aligned", " f"),  # 0.475, and the base model's second
        ("aligned", " i"),
    ]
    assert [piece.top_prob for piece in pieces] == pytest.approx([0.9, 0.6, 0.5, 0.9])
    assert pieces[0].rejected is not None
    assert pieces[0].rejected.text == " a"
    assert pieces[0].rejected.top_prob == pytest.approx(0.6)
    assert [piece.rejected is None for piece in pieces] == [False, True, False, True]
    usage = finished.usage
    assert (usage.base_tokens, usage.aligned_tokens, usage.rounds) == (1, 3, 2)
    assert (usage.base_steps, usage.aligned_steps, usage.untuned_steps) == (5, 5, 0)
    assert usage.discarded_tokens == 6  # 10 steps for 4 tokens


async def test_proxy_tuning_takes_what_alignment_made_likelier():
    base = engine({" a": 0.7, " b": 0.3})
    untuned = engine({" a": 0.9, " b": 0.1})
    aligned = engine({" a": 0.5, " b": 0.5}, stop=TURN_END)
    pieces, finished = await told(mixed(base, aligned, untuned))
    assert text(pieces) == " b"  # 0.3 · 5 against 0.7 · 0.56
    assert finished.usage.untuned_steps == 2
    assert finished.usage.discarded_tokens == 5


@pytest.mark.parametrize(
    ("last", "reason"), [({TURN_END: 1.0}, "aligned_end"), ({END: 1.0}, "end_of_text")]
)
async def test_either_models_end_is_the_end(last: Row, reason: str):
    script = [*rows(" a"), last, *rows(" b")]
    base, aligned = engine(*script), engine(*script, stop=TURN_END)
    pieces, finished = await told(mixed(base, aligned))
    assert (text(pieces), finished.stop_reason) == (" a", reason)


async def test_a_special_token_that_ends_nothing_is_never_chosen():
    script: list[Row] = [{MARK: 0.9, " a": 0.1}]
    pieces, finished = await told(mixed(engine(*script), engine(*script, stop=TURN_END)))
    assert (text(pieces), finished.stop_reason) == (" a", "aligned_end")


async def test_max_tokens_stop_strings_and_stop_tokens_end_it():
    script = rows(" a", " b", " c", " d")

    async def ended(**wishes) -> tuple[str, str]:
        request = replace(GREEDY, **wishes)
        pair = engine(*script), engine(*script, stop=TURN_END)
        pieces, finished = await told(mixed(*pair, request=request), request)
        return text(pieces), finished.stop_reason

    assert await ended() == (" a b c d", "aligned_end")
    assert await ended(max_tokens=2) == (" a b", "length")
    assert await ended(stop=("b c",)) == (" a ", "stop_string")
    [c] = TOKENIZER.encode_text(" c")
    assert await ended(stop_token_ids=(c,)) == (" a b", "stop_token")


async def test_no_end_comes_before_min_tokens():
    script: list[Row] = [{END: 0.5, TURN_END: 0.4, " a": 0.1}] * 4
    for wishes, tokens in (({}, 0), ({"min_tokens": 3}, 3), ({"ignore_eos": True}, 4)):
        request = replace(GREEDY, max_tokens=4, **wishes)
        pair = engine(*script), engine(*script, stop=TURN_END)
        _, finished = await told(mixed(*pair, request=request), request)
        assert finished.usage.completion_tokens == tokens


async def test_a_full_context_ends_it_and_a_long_prompt_is_refused():
    script = rows(*[" a"] * 20)
    _, finished = await told(mixed(engine(*script), engine(*script, context=8, stop=TURN_END)))
    assert finished.stop_reason == "context"
    assert finished.finish_reason == "length"
    with pytest.raises(ContextLengthExceeded, match="untuned model"):
        mixed(engine(), engine(), engine(context=2), prompts=("one two three four", "q"))


async def test_a_characters_bytes_are_one_piece():
    ids = TOKENIZER.encode_text("🦊")
    assert len(ids) > 1
    script: list[Row] = [{each: 1.0} for each in ids]
    pieces, _ = await told(mixed(engine(*script), engine(*script, stop=TURN_END)))
    assert [(piece.text, piece.tokens) for piece in pieces] == [("🦊", len(ids))]


async def test_log_probabilities_are_the_mixtures():
    base, aligned = engine({" a": 0.6, " b": 0.4}), engine({" b": 0.9, " a": 0.1}, stop=TURN_END)
    request = replace(GREEDY, top_logprobs=2)
    pieces, _ = await told(mixed(base, aligned, request=request), request)
    [token] = pieces[0].scored
    assert math.exp(token.logprob) == pytest.approx(0.65)
    assert [each for each, _ in token.top] == [b" b", b" a"]
    assert math.exp(token.top[1][1]) == pytest.approx(0.35)
    assert math.exp(pieces[-1].scored[-1].logprob) == pytest.approx(1)  # the end


@pytest.mark.parametrize(
    ("speaker", "word", "prompts", "read", "said"),
    [
        # The base model's prompt ends in a space that waits (docs/adr/0004).
        ("base", " a", ("q ", "q"), ["q a", "qa"], "a"),
        ("aligned", "a", ("q ", "q"), ["q a", "qa"], "a"),
        ("aligned", " a", ("q ", "q"), ["q a", "q a"], " a"),
        ("base", " a", ("q", "q"), ["q a", "q a"], " a"),
        ("base", " a", ("q ", "q "), ["q a", "q a"], "a"),
        ("base", "a", ("q ", "q "), ["qa", "qa"], "a"),
    ],
)
async def test_each_model_reads_the_first_word_in_its_own_way(speaker, word, prompts, read, said):
    certain: Row = {word: 1.0}
    unlike: Row = {"x": 0.4, word: 0.3, "y": 0.3}
    base = engine(certain if speaker == "base" else unlike)
    aligned = engine(unlike if speaker == "base" else certain, stop=TURN_END)
    writer = mixed(base, aligned, prompts=prompts)
    pieces, _ = await told(writer)
    contexts = [
        TOKENIZER.decode([*each.session._prompt, *each.session._output]) for each in writer.contexts
    ]
    assert contexts == read
    assert text(pieces) == said


async def test_closing_the_stream_frees_every_engine():
    script = rows(*[" a"] * 50)
    engines = [engine(*script, step_s=0.01) for _ in range(3)]
    writer = mixed(*engines)
    events = stream(writer, GREEDY)
    await anext(events)
    await events.aclose()
    assert [each.running for each in engines] == [0, 0, 0]
    assert all(context.session.closed for context in writer.contexts)


async def test_an_engine_that_dies_ends_the_others_turns():
    script = rows(*[" a"] * 50)
    base, aligned = engine(*script, step_s=60), engine(*script, stop=TURN_END, dies_after=0)
    writer = mixed(base, aligned)
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(told(writer), 10)
    assert base.running == 0


def test_two_vocabularies_are_refused():
    other = Tokenizer.load(str(DEMO / "aligned-1k"))
    aligned = ScriptedEngine(EngineInfo("x", "x", 99, other, (END,)), lambda *_: [])
    with pytest.raises(InvalidRequest, match="one vocabulary") as refused:
        mixed(engine(), aligned)
    assert refused.value.param == "nudging.policy"


# -- served ---------------------------------------------------------------------------------------

CONFIG = """\
engines:
  base: {backend: scripted, model: DEMO/base}
  aligned: {backend: scripted, model: DEMO/aligned}
  small: {backend: scripted, model: DEMO/aligned-1k}
models:
  pair: {base: base, aligned: aligned, untuned: base, nudging: {policy: proxy_tuning}}
"""


def settings(folder: Path, old: str = "", new: str = "") -> Settings:
    path = folder / "nudge.yaml"
    path.write_text(CONFIG.replace(old, new).replace("DEMO", str(DEMO)))
    return load(path)


async def test_the_third_engine_is_named_in_the_configuration(tmp_path: Path):
    registry = Registry(settings(tmp_path))
    await registry.start()
    served = registry.resolve("pair")
    prompt = registry.prompts(served, [Message("user", "Hi")])
    writer = registry.writer(served, prompt, GREEDY, served.nudging)
    pieces, finished = await told(writer)
    assert text(pieces).startswith("Hello!")
    assert finished.usage.untuned_steps == finished.usage.base_steps > 0
    assert registry.state == "ready"
    await registry.aclose()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", untuned: base", "", "models.pair.untuned: the policy 'proxy_tuning' needs a third"),
        ("untuned: base", "untuned: third", "models.pair.untuned: no engine is named 'third'"),
    ],
)
def test_what_a_configuration_lacks_is_said(tmp_path: Path, old: str, new: str, message: str):
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, old, new)


async def test_a_configured_mixture_of_two_vocabularies_fails_at_the_start(tmp_path: Path):
    registry = Registry(settings(tmp_path, "aligned: aligned", "aligned: small"))
    with pytest.raises(ConfigError, match=r"models.pair.nudging.policy: .*one vocabulary"):
        await registry.start()
