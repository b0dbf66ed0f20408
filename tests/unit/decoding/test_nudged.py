"""Who writes what, on scripted engines: every token and probability is chosen here."""

from __future__ import annotations

import asyncio
import functools
import random
from contextlib import aclosing
from dataclasses import replace

import pytest

from server.core import (
    AnswerRequest,
    ContextLengthExceeded,
    EngineUnavailable,
    Finished,
    Grammar,
    InvalidRequest,
    NudgingConfig,
    Piece,
    PromptPair,
    SamplingParams,
)
from server.decoding.alone import Alone, Referenced
from server.decoding.nudged import Nudged
from server.decoding.stream import stream
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine, scripted_text
from server.text.grammar.vetting import compile_schema, matches
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO, pieces_of

GREEDY = AnswerRequest(SamplingParams(temperature=0))


def engine(
    *script: tuple[str, float], folder: str = "aligned", context: int = 2048
) -> ScriptedEngine:
    tokenizer = Tokenizer.load(str(DEMO / folder))
    end = tokenizer.chat.eos_token_id
    info = EngineInfo("scripted", "text", context, tokenizer, (end,))
    return ScriptedEngine(info, scripted_text(tokenizer, end, script))


async def told(
    base: ScriptedEngine, aligned: ScriptedEngine, request=GREEDY, prompt="Hi", **settings
) -> tuple[list[tuple[str, str]], Finished]:
    """The answer as (speaker, text), neighbours of one speaker joined."""
    writer = Nudged(
        base, aligned, PromptPair((prompt,), (prompt,)), request, NudgingConfig(**settings)
    )
    spans: list[tuple[str, str]] = []
    async with aclosing(stream(writer, request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return spans, event
            if spans and spans[-1][0] == event.speaker:
                spans[-1] = (event.speaker, spans[-1][1] + event.text)
            else:
                spans.append((event.speaker, event.text))
    raise AssertionError("no Finished")


@pytest.mark.parametrize("folder", ["aligned", "aligned-1k"])
async def test_a_nudge_where_the_base_model_is_uncertain(folder: str):
    base = engine(("Once upon a time", 0.9), (" there", 0.1), (" was a fox.", 0.9))
    aligned = engine(("Once upon a time there was a fox. Bye.", 0.9), folder=folder)
    spans, finished = await told(base, aligned, gamma=0.4)
    assert spans == [
        ("aligned", "Once"),
        ("base", " upon a time"),
        ("aligned", " there"),
        ("base", " was a fox."),
        ("aligned", " Bye."),
    ]
    assert finished.stop_reason == "aligned_end"
    assert finished.usage.rounds == 3


async def test_the_rejected_token_is_told_at_the_nudge():
    base = engine(("Well", 0.9), (" maybe", 0.2), (" so", 0.9))
    aligned = engine(("Well then", 0.9))
    request = GREEDY
    writer = Nudged(base, aligned, PromptPair(("a",), ("a",)), request, NudgingConfig(gamma=0.5))
    pieces = [each async for each in pieces_of(writer) if isinstance(each, Piece)]
    assert pieces[0].rejected is None  # the aligned model started
    nudge = next(piece for piece in pieces[1:] if piece.speaker == "aligned")
    assert nudge.rejected is not None
    assert nudge.rejected.top_prob == pytest.approx(0.2)
    assert " maybe".startswith(nudge.rejected.text)


async def test_a_base_model_at_its_end_hands_over_and_the_aligned_model_ends():
    spans, finished = await told(engine(("A b c", 0.9)), engine(("A b c", 0.9)))
    assert spans == [("aligned", "A"), ("base", " b c")]
    assert finished.stop_reason == "aligned_end"


async def test_the_base_model_starts_when_it_is_told_to():
    spans, _ = await told(engine(("A b c", 0.9)), engine(("A b c d", 0.9)), start="base")
    assert spans == [("base", "A b c"), ("aligned", " d")]


async def test_an_ending_within_the_lookahead_is_the_aligned_models_whole():
    base = engine(("A b c d e f", 0.9))
    aligned = engine(("A b c d e f", 0.9))
    spans, finished = await told(base, aligned, end_lookahead=64)
    assert spans == [("aligned", "A b c d e f")]
    assert finished.stop_reason == "aligned_end"


async def test_a_lookahead_that_sees_no_end_gives_one_word():
    text = "A b c d e f g h i j k l m n o p"
    spans, _ = await told(engine((text, 0.9)), engine((text, 0.9)), end_lookahead=3)
    assert spans[0] == ("aligned", "A")
    assert spans[1][0] == "base"


async def test_what_was_looked_at_and_not_taken_is_in_no_context():
    text = "A b c d e f g h i j k l m n o p"
    base, aligned = engine((text, 0.9)), engine((text, 0.9))
    prompt = PromptPair(("a",), ("a",))
    config = NudgingConfig(end_lookahead=3, gamma=0.95)  # every word is the aligned model's
    writer = Nudged(base, aligned, prompt, GREEDY, config)
    answer = "".join([piece.text async for piece in pieces_of(writer)])
    assert answer == text
    assert aligned.info.tokenizer.decode(writer.aligned.session._session._output) == text


@functools.cache
def words() -> tuple[Tokenizer, list[int]]:
    """A tokenizer, and its tokens that have a text."""
    tokenizer = Tokenizer.load(str(DEMO / "aligned"))
    return tokenizer, [i for i in range(tokenizer.size) if tokenizer.token_bytes(i)]


def noisy(seed: int) -> ScriptedEngine:
    """Tokens that depend on all that was written and on nothing else, often half characters."""
    tokenizer, ids = words()
    end = tokenizer.chat.eos_token_id

    def distribution(prompt, output):
        draws = random.Random(repr([seed, *output]))
        if draws.random() < 0.04:
            return [(end, 1.0)]
        return [(draws.choice(ids), draws.random())]

    info = EngineInfo("scripted", "noise", 512, tokenizer, (end,))
    return ScriptedEngine(info, distribution)


@pytest.mark.parametrize("lookahead", [2, 5, 16])
async def test_going_ahead_changes_no_text(lookahead: int):
    went = 0
    for seed in range(40):
        found = []
        for ahead in (False, True):
            base, aligned = noisy(seed), noisy(-seed)
            config = NudgingConfig(gamma=0.5, end_lookahead=lookahead)
            request = replace(GREEDY, max_tokens=40, stop_token_ids=(300, 301, 302))
            writer = Nudged(base, aligned, PromptPair(("a",), ("b",)), request, config)
            writer.goes_ahead = ahead
            pieces = [piece async for piece in pieces_of(writer)]
            usage = writer.usage()
            found.append(
                (
                    "".join(piece.text for piece in pieces),
                    writer.policy.stop_reason,
                    usage.base_tokens,
                    usage.aligned_tokens,
                    usage.rounds,
                )
            )
            went += ahead and usage.base_steps > 0
            assert not base.running
        assert found[0] == found[1]
    assert went > 10


async def test_the_first_word_is_out_and_the_base_model_writes_while_the_lookahead_runs():
    text = "A b c d e f g h i j k l m n o p"
    base, aligned = engine((text, 0.9)), engine((text, 0.9))
    seen: list[tuple[int, int]] = []
    plain = aligned.distribution

    def watched(prompt, output):
        seen.append((writer.aligned.session.steps, writer.base.session.steps))
        return plain(prompt, output)

    aligned.distribution = watched
    config = NudgingConfig(end_lookahead=8)
    writer = Nudged(base, aligned, PromptPair(("a",), ("a",)), GREEDY, config)
    async with aclosing(pieces_of(writer)) as pieces:
        first = await anext(pieces)
        assert (first.text, first.speaker) == ("A", "aligned")
        assert writer.aligned.session.steps < 8
        second = await anext(pieces)
        assert (second.text, second.speaker) == (" b", "base")
    assert seen[7] == (8, 1)


@pytest.mark.parametrize("taken", [1, 2])
async def test_whoever_leaves_during_a_lookahead_stops_both(taken: int):
    text = "A b c d e f g h i j k l m n o p"
    base, aligned = engine((text, 0.9)), engine((text, 0.9))
    base.step_s = aligned.step_s = 0.001
    config = NudgingConfig(end_lookahead=8)
    writer = Nudged(base, aligned, PromptPair(("a",), ("a",)), GREEDY, config)
    async with aclosing(pieces_of(writer)) as pieces:
        for _ in range(taken):
            await anext(pieces)
        await asyncio.sleep(0)  # the base model's turn has begun
    assert base.running == aligned.running == 0
    assert writer.base.session.closed
    assert writer.aligned.session._session.closed


async def test_what_the_base_model_wrote_ahead_of_an_ending_is_forgotten():
    """Even its death is."""
    base, aligned = engine(("A b c d", 0.9)), engine(("A b c d", 0.9))
    base.dies_after = 0
    spans, finished = await told(base, aligned, end_lookahead=16)
    assert spans == [("aligned", "A b c d")]
    assert finished.stop_reason == "aligned_end"
    with pytest.raises(EngineUnavailable):
        await told(base, aligned, end_lookahead=3)
    assert base.running == aligned.running == 0


async def test_special_tokens_reach_neither_the_answer_nor_the_other_model():
    base = engine(("x", 0.9))
    tokenizer = base.info.tokenizer
    special = tokenizer.chat.convert_tokens_to_ids("<|bos|>")
    said = [special, *tokenizer.encode_text(" hello"), special, *tokenizer.encode_text(" you")]

    def distribution(prompt, output):
        count = len(output) - 1  # after the aligned model's first token
        return [(said[count], 0.9) if count < len(said) else (base.info.stop_ids[0], 1.0)]

    base.distribution = distribution
    aligned = engine(("A hello you", 0.9))
    writer = Nudged(base, aligned, PromptPair(("a",), ("a",)), GREEDY, NudgingConfig())
    assert "".join([piece.text async for piece in pieces_of(writer)]) == "A hello you"
    assert special in writer.base.session._output  # its own context keeps what it wrote
    assert special not in writer.aligned.session._session._output


@pytest.mark.parametrize("cut", range(1, 14))
async def test_a_stop_string_is_found_across_speakers_and_never_leaks(cut: int):
    text = "Once upon a time there was a fox."
    stop = text[cut : cut + 12]
    base = engine((text[:10], 0.9), (text[10:16], 0.1), (text[16:], 0.9))
    request = AnswerRequest(SamplingParams(temperature=0), stop=(stop,))
    spans, finished = await told(base, engine((text, 0.9)), request)
    assert "".join(part for _, part in spans) == text[:cut]
    assert finished.stop_reason == "stop_string"
    assert finished.matched == stop


async def test_what_only_looked_like_a_stop_string_comes_out():
    request = AnswerRequest(SamplingParams(temperature=0), stop=("fox jumps",))
    spans, finished = await told(engine(("a fox.", 0.9)), engine(("a fox.", 0.9)), request)
    assert "".join(part for _, part in spans) == "a fox."
    assert finished.stop_reason == "aligned_end"


async def test_a_prompts_trailing_space_goes_to_the_first_word():
    """The base model reads "Answer: Once" as it would have written it."""
    base = engine(("x", 0.9))
    seen: list[str] = []

    def distribution(prompt, output):
        seen.append(base.info.tokenizer.decode([*prompt, *output]))
        return scripted_text(base.info.tokenizer, base.info.stop_ids[0], [])(prompt, output)

    base.distribution = distribution
    pair = PromptPair(("Q: hi\nAnswer: ",), ("hi",))
    writer = Nudged(base, engine(("Once more", 0.9)), pair, GREEDY, NudgingConfig())
    assert "".join([piece.text async for piece in pieces_of(writer)]) == "Once more"
    assert seen[0] == "Q: hi\nAnswer: Once"
    space_once = base.info.tokenizer.encode_text(" Once")
    assert writer.base.session._output[: len(space_once)] == space_once


async def test_a_first_word_with_its_own_space_gets_no_second_one():
    base = engine(("x", 0.9))
    pair = PromptPair(("Answer: ",), ("hi",))
    writer = Nudged(base, engine((" Once", 0.9)), pair, GREEDY, NudgingConfig())
    assert "".join([piece.text async for piece in pieces_of(writer)]) == " Once"
    assert base.info.tokenizer.decode(writer.base.session._output) == " Once"


async def test_a_model_alone_gives_its_prompts_trailing_space_back_too():
    writer = Alone(engine((" Paris", 0.9)), "base", ("Answer: ",), GREEDY)
    assert "".join([piece.text async for piece in pieces_of(writer)]) == "Paris"


async def test_of_an_indentation_only_the_last_space_waits():
    """Who goes on with it sees how deep it is, and adds to it what it writes itself."""
    for first, whole in ((" Paris", "Paris"), ("Paris", "Paris"), ("  Paris", " Paris")):
        base = engine((first, 0.9))
        writer = Alone(base, "base", ("def f():\n    ",), GREEDY)
        assert base.info.tokenizer.decode(writer.side.session._prompt) == "def f():\n   "
        assert "".join([piece.text async for piece in pieces_of(writer)]) == whole


async def test_a_prompt_that_is_one_space_is_read():
    assert Alone(engine(("x", 0.9)), "base", (" ",), GREEDY).usage().prompt_tokens


@pytest.mark.parametrize("speaker", ["base", "aligned"])
def test_a_prompt_that_does_not_fit_one_model_says_which(speaker: str):
    engines = {"base": engine(("a", 0.9)), "aligned": engine(("a", 0.9))}
    engines[speaker] = engine(("a", 0.9), context=5)
    for kind in (Nudged, Referenced):
        with pytest.raises(ContextLengthExceeded, match=f"for the {speaker} model"):
            kind(
                engines["base"],
                engines["aligned"],
                PromptPair(("a b c d e f g h",), ("a b c d e f g h",)),
                GREEDY,
                NudgingConfig(),
            )


@pytest.mark.parametrize("full", ["base", "aligned"])
async def test_a_full_context_finishes_with_length(full: str):
    text = "".join(f"word {number} " for number in range(100))
    engines = {"base": engine((text, 0.9)), "aligned": engine((text, 0.9))}
    engines[full] = engine((text, 0.9), context=40)
    gamma = 0.5 if full == "base" else 2.0
    _, finished = await told(engines["base"], engines["aligned"], gamma=gamma)
    assert finished.stop_reason == "context"
    assert finished.finish_reason == "length"
    assert engines[full].running == 0


async def test_a_character_left_half_written_is_taken_back_and_written_whole_by_the_other():
    """The base model is sure of an emoji's first byte and unsure of the next."""
    base = engine(("Hi ", 0.9), folder="base")
    tokenizer = base.info.tokenizer
    fox = [tokenizer._byte_ids[byte] for byte in "🦊".encode()]
    start = tokenizer.encode_text("Hi ")

    def distribution(prompt, output):
        text = tokenizer.decode(output)
        if len(output) < len(start):
            return [(start[len(output)], 0.9)]
        if not text.endswith("🦊"):
            return [(fox[len(output) - len(start)], 0.9 if output[-1] not in fox else 0.1)]
        return [(base.info.stop_ids[0], 1.0)]

    base.distribution = distribution
    aligned = engine(("Hi 🦊", 0.9))
    writer = Nudged(base, aligned, PromptPair(("a",), ("a",)), GREEDY, NudgingConfig(start="base"))
    pieces = [piece async for piece in pieces_of(writer)]
    assert "".join(piece.text for piece in pieces) == "Hi 🦊"
    assert [p.speaker for p in pieces if "🦊" in p.text] == ["aligned"]
    assert tokenizer.decode(writer.base.session._output) == "Hi 🦊"
    assert writer.usage().base_tokens == len(start)


async def test_a_failing_engine_fails_the_stream_and_frees_the_other():
    base, aligned = engine(("A b", 0.9)), engine(("A b", 0.9))

    def broken(prompt, output):
        raise OSError("broken")

    base.distribution = broken
    writer = Nudged(base, aligned, PromptPair(("a",), ("a",)), GREEDY, NudgingConfig())
    with pytest.raises(OSError, match="broken"):
        _ = [event async for event in stream(writer, AnswerRequest())]
    assert base.running == aligned.running == 0
    assert writer.base.session.closed
    assert writer.aligned.session._session.closed


async def test_both_sessions_are_closed_however_the_answer_ends():
    for stop in ((), ("on a",)):
        base, aligned = engine(("Once upon a time", 0.9)), engine(("Once upon a time", 0.9))
        writer = Nudged(base, aligned, PromptPair(("a",), ("a",)), GREEDY, NudgingConfig())
        async with aclosing(stream(writer, AnswerRequest(stop=stop))) as events:
            _ = [event async for event in events]
        assert writer.base.session.closed
        assert writer.aligned.session._session.closed


async def test_cancelling_an_answer_frees_both_engines():
    base, aligned = engine(("word " * 500, 0.9)), engine(("word " * 500, 0.9))
    base.step_s = aligned.step_s = 0.001
    answering = asyncio.create_task(told(base, aligned))
    await asyncio.sleep(0.05)
    assert base.running + aligned.running == 1
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    assert base.running == aligned.running == 0


def token_of(text: str, folder: str = "aligned") -> int:
    (token,) = Tokenizer.load(str(DEMO / folder)).encode_text(text)
    return token


@pytest.mark.parametrize("lookahead", [0, 3])
async def test_a_stop_token_ends_the_answer_whoever_draws_it(lookahead: int):
    text = "A b c. D"
    request = replace(GREEDY, stop_token_ids=(token_of("."),))
    for base_says in (0.9, 0.1):  # the base model writes it all, or nothing
        spans, finished = await told(
            engine((text, base_says)), engine((text, 0.9)), request, end_lookahead=lookahead
        )
        assert "".join(text for _, text in spans) == "A b c"
        assert (finished.stop_reason, finished.finish_reason) == ("stop_token", "stop")


async def test_a_stop_token_that_would_begin_the_next_word_ends_it_there():
    text = "A b c d"
    request = replace(GREEDY, stop_token_ids=(token_of(" c"),))
    spans, finished = await told(engine((text, 0.1)), engine((text, 0.9)), request)
    assert spans == [("aligned", "A b")]
    assert finished.stop_reason == "stop_token"


async def test_a_stop_string_counts_after_min_tokens_only():
    text = "a b a b a"
    request = replace(GREEDY, stop=(" b",), min_tokens=3)
    spans, finished = await told(engine((text, 0.9)), engine((text, 0.9)), request)
    assert "".join(text for _, text in spans) == "a b a"
    assert finished.stop_reason == "stop_string"


async def test_an_answer_that_is_not_what_its_grammar_says_is_an_error():
    request = replace(GREEDY, grammar=compile_schema({"type": "object"}))
    base, aligned = engine(("{}", 0.9)), engine(("{}", 0.9))
    _, finished = await told(base, aligned, request)
    assert finished.stop_reason == "aligned_end"
    writer = Nudged(base, aligned, PromptPair(("a",), ("a",)), GREEDY, NudgingConfig())
    aligned.distribution = scripted_text(
        aligned.info.tokenizer, aligned.info.stop_ids[0], [("no", 1.0)]
    )

    async def by_its_bytes(grammar: Grammar, text: str) -> bool:
        return matches(grammar, text)

    with pytest.raises(InvalidRequest, match="schema") as caught:
        _ = [event async for event in stream(writer, request, by_its_bytes)]
    assert caught.value.param == "response_format"
