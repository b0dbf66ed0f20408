"""Characters of several tokens, where an answer is cut inside them, and drafts that are."""

from __future__ import annotations

import random
from contextlib import aclosing
from dataclasses import replace
from functools import cache

import pytest

from server.core import AnswerRequest, Finished, NudgingConfig, PromptPair, SamplingParams
from server.decoding.alone import Alone
from server.decoding.nudged import Nudged
from server.decoding.stream import Writer, stream
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine, scripted_text
from server.text.grammar.vetting import compile_schema
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO, pieces_of

GREEDY = AnswerRequest(SamplingParams(temperature=0))
TEXTS = ["😀é漢字", "Hi 👩‍👩‍👧 you", "漢字かな。 Ok", "👍🏽 😀"]
LOOKAHEADS = [0, 2, 16]
# How certain the base model is of what it writes: it writes nearly all, or nothing.
WRITES = {"base": 0.9, "aligned": 0.1}


@cache
def tokenizer(folder: str = "aligned") -> Tokenizer:
    return Tokenizer.load(str(DEMO / folder))


def engine(text: str, top_prob: float = 0.9, context: int = 2048) -> ScriptedEngine:
    own = tokenizer()
    end = own.chat.eos_token_id
    info = EngineInfo("scripted", "text", context, own, (end,))
    return ScriptedEngine(info, scripted_text(own, end, [(text, top_prob)]))


async def told(writer: Writer, request: AnswerRequest) -> tuple[str, Finished]:
    text = ""
    async with aclosing(stream(writer, request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return text, event
            text += event.text
    raise AssertionError("no Finished")


def nudged(
    base: ScriptedEngine, aligned: ScriptedEngine, request: AnswerRequest, **settings
) -> Nudged:
    return Nudged(base, aligned, PromptPair(("a",), ("a",)), request, NudgingConfig(**settings))


def whole_characters(ids: list[int]) -> str:
    return tokenizer().bytes_of(ids).decode("utf-8", "ignore")


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("speaker", WRITES)
@pytest.mark.parametrize("text", TEXTS)
async def test_max_tokens_ends_the_answer_wherever_it_cuts(text, speaker, lookahead):
    ids = tokenizer().encode_text(text)
    for most in range(1, len(ids) + 3):
        request = replace(GREEDY, max_tokens=most)
        for start in ("base", "aligned"):
            writer = nudged(
                engine(text, WRITES[speaker]),
                engine(text),
                request,
                start=start,
                end_lookahead=lookahead,
            )
            answer, finished = await told(writer, request)
            assert answer == whole_characters(ids[:most])
            assert finished.usage.completion_tokens <= most
            expected = "length" if most <= len(ids) else "aligned_end"
            assert finished.stop_reason == expected, most


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("speaker", WRITES)
@pytest.mark.parametrize("text", TEXTS)
async def test_a_full_context_ends_the_answer_wherever_it_cuts(text, speaker, lookahead):
    ids = tokenizer().encode_text(text)
    read = len(tokenizer().encode_prompt("a"))
    for room in range(1, len(ids) + 1):
        base = engine(text, WRITES[speaker], read + room if speaker == "base" else 2048)
        aligned = engine(text, context=read + room if speaker == "aligned" else 2048)
        writer = nudged(base, aligned, GREEDY, end_lookahead=lookahead)
        answer, finished = await told(writer, GREEDY)
        assert text.startswith(answer)
        assert answer.startswith(whole_characters(ids[:room]))
        if answer != text:
            assert (finished.stop_reason, finished.finish_reason) == ("context", "length")


@pytest.mark.parametrize("speaker", ["base", "aligned"])
@pytest.mark.parametrize("text", TEXTS)
async def test_so_it_is_with_one_model_alone(text: str, speaker):
    ids = tokenizer().encode_text(text)
    read = len(tokenizer().encode_prompt("a"))
    for most in range(1, len(ids)):
        request = replace(GREEDY, max_tokens=most)
        answer, finished = await told(Alone(engine(text), speaker, ("a",), request), request)
        assert (answer, finished.stop_reason) == (whole_characters(ids[:most]), "length")
        full = Alone(engine(text, context=read + most), speaker, ("a",), GREEDY)
        answer, finished = await told(full, GREEDY)
        assert (answer, finished.stop_reason) == (whole_characters(ids[:most]), "context")


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
async def test_a_character_that_both_begin_ends_with_max_tokens_too(lookahead: int):
    """The base model is sure of its first byte alone, so that is taken back."""
    ids = tokenizer().encode_text("😀")
    text = "Hi " + "😀" * 3
    for most in range(1, 4 + 3 * len(ids)):
        base, request = engine(text), replace(GREEDY, max_tokens=most)
        sure = base.distribution

        def unsure(prompt, output, sure=sure):
            inside = len(output) and output[-1] == ids[0]
            return [(token, 0.1 if inside else p) for token, p in sure(prompt, output)]

        base.distribution = unsure
        writer = nudged(base, engine(text), request, end_lookahead=lookahead)
        answer, finished = await told(writer, request)
        assert text.startswith(answer)
        expected = "aligned_end" if answer == text else "length"
        assert finished.stop_reason in (expected, "length")


ENUM = compile_schema({"enum": ["😀é漢字"]})


@pytest.mark.parametrize("lookahead", [0, 1, 2, 3, 5, 16])
@pytest.mark.parametrize("speaker", ["base", "aligned"])
async def test_a_grammars_only_text_is_written_whole_or_cut_by_length(speaker, lookahead: int):
    ids = tokenizer().encode_text('"😀é漢字"')
    gamma = 0.0 if speaker == "base" else 2.0
    for most in [*range(1, len(ids)), None]:
        request = replace(GREEDY, max_tokens=most, grammar=ENUM)
        writer = nudged(engine("x"), engine("x"), request, gamma=gamma, end_lookahead=lookahead)
        answer, finished = await told(writer, request)
        assert answer == whole_characters(ids[:most])
        assert finished.stop_reason == ("aligned_end" if most is None else "length")


def noise(seed: int) -> ScriptedEngine:
    """Tokens that depend on all that was written and on nothing else, often half characters."""
    own = tokenizer()
    ids = [i for i in range(own.size) if own.token_bytes(i)]
    ids += own.encode_text(" 😀 é 漢字\n\n") * 20
    end = own.chat.eos_token_id

    def distribution(prompt, output):
        draws = random.Random(repr([seed, *output]))
        return [(draws.choice(ids), draws.random())]

    return ScriptedEngine(EngineInfo("scripted", "noise", 512, own, (end,)), distribution)


@pytest.mark.parametrize("lookahead", [1, 2, 3, 5, 17])
async def test_a_lookahead_that_sees_no_end_changes_nothing(lookahead: int):
    """However little of a word it sees."""
    request = replace(GREEDY, max_tokens=40)
    for seed in range(40):
        found = []
        for tokens in (0, lookahead):
            writer = nudged(noise(seed), noise(-seed), request, gamma=0.5, end_lookahead=tokens)
            pieces = [piece async for piece in pieces_of(writer)]
            found.append(
                (
                    [(piece.text, piece.speaker, piece.tokens) for piece in pieces],
                    writer.policy.stop_reason,
                    writer.policy.rounds,
                )
            )
        assert found[0] == found[1]


async def test_an_end_behind_a_word_that_is_longer_than_the_lookahead_is_not_in_it():
    """The base model is asked first, as without a lookahead."""
    text = "unbelievably"
    assert len(tokenizer().encode_text(text)) > 1
    for lookahead in (0, 1):
        writer = nudged(engine(text + " so"), engine(text), GREEDY, end_lookahead=lookahead)
        answer, finished = await told(writer, GREEDY)
        assert (answer, finished.stop_reason) == (text + " so", "aligned_end")


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
async def test_no_engine_is_asked_for_nothing(lookahead: int):
    """The base model's turn is broken off, for it repeats itself, where max_tokens are reached."""
    own = tokenizer()
    block = own.encode_text("a b c d e")
    start = own.encode_text("Hi")
    base = engine("x")
    base.distribution = lambda _, output: [(block[(len(output) - len(start)) % len(block)], 0.9)]
    request = replace(GREEDY, max_tokens=len(start) + 3 * len(block))
    writer = nudged(base, engine("Hi you " * 9), request, end_lookahead=lookahead)
    asked: list[int] = []
    session = writer.aligned.session
    generate = session.generate

    def noted(params):
        asked.append(params.max_tokens)
        return generate(params)

    session.generate = noted
    answer, finished = await told(writer, request)
    assert (answer, finished.stop_reason) == ("Hi" + own.decode(block) * 3, "length")
    assert all(most >= 1 for most in asked)
