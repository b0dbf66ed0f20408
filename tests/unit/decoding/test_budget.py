"""Thoughts that may take so many tokens, whoever writes them. On scripted engines."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core import (
    AnswerRequest,
    Finished,
    NudgingConfig,
    Piece,
    PromptPair,
    SamplingParams,
    ThinkingLimit,
)
from server.decoding.alone import Alone
from server.decoding.budget import CHARACTER, ThinkingBudget
from server.decoding.nudged import Nudged
from server.decoding.stream import whole
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine, scripted_text
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

GREEDY = AnswerRequest(SamplingParams(temperature=0), marked=True)
GUARDS = ("repetition", "repeated_round")  # what came round last is not told
OPENS, CLOSES = "<think>", "</think>"


def limited(tokens: int, *, thinking: bool = False, marker: str = "") -> ThinkingLimit:
    return ThinkingLimit(tokens, OPENS, CLOSES, thinking, marker)


def heard(budget: ThinkingBudget, *texts: str) -> list[bool]:
    """Whether they are to end, behind each of several pieces of a token."""
    due = []
    for text in texts:
        budget.hear(Piece(text, "base", 1.0, 1))
        due.append(budget.due)
    return due


def test_only_the_tokens_of_thoughts_count():
    assert heard(ThinkingBudget(limited(2)), "\n<thi", "nk>", "a", "b", "c") == [
        *[False] * 3,
        True,
        True,
    ]
    assert heard(ThinkingBudget(limited(2, thinking=True)), "a", "b") == [False, True]
    assert ThinkingBudget(limited(0, thinking=True)).due
    assert not any(heard(ThinkingBudget(limited(2)), "Hi", " <think>", "a", "b", "c"))
    assert not any(heard(ThinkingBudget(None), "<think>", "a", "b", "c"))


@pytest.mark.parametrize("marker", ["", "<call>"])
def test_who_has_ended_them_is_not_hurried(marker: str):
    budget = ThinkingBudget(limited(4, marker=marker))
    end = marker or CLOSES
    assert not any(heard(budget, "<think>", "a", "b", end[:3], end[3:], "c", "d", "e"))


def engine(text: str, doubts: frozenset[int], folder: str, context: int) -> ScriptedEngine:
    tokenizer = Tokenizer.load(str(DEMO / folder))
    end = tokenizer.chat.eos_token_id
    info = EngineInfo("scripted", "text", context, tokenizer, (end,))
    words = [word + " " for word in text.split(" ")]
    script = [(word, 0.2 if i in doubts else 0.9) for i, word in enumerate(words)]
    return ScriptedEngine(info, scripted_text(tokenizer, end, script))


TEXTS = ("I wonder what she does, \u00e9\u00e9 \U0001f600\U0001f600. ", "\u6f22\u5b57 ", "a ")


@settings(max_examples=60)
@given(
    st.integers(0, 60),
    st.sampled_from(TEXTS),
    st.frozensets(st.integers(0, 40)),
    st.sampled_from(["base", "aligned", "aligned-1k"]),
    st.sampled_from(["nudged", "alone"]),
    st.booleans(),
    st.sampled_from([None, 3, 12, 40, 90]),
)
async def test_thoughts_take_no_more_than_they_may(
    tokens: int,
    text: str,
    doubts: frozenset[int],
    folder: str,
    way: str,
    thinking: bool,
    most: int | None,
):
    said = ("" if thinking else f"{OPENS}\n") + text * 30
    request = replace(GREEDY, thinking=limited(tokens, thinking=thinking), max_tokens=most)
    aligned = engine(said, frozenset(), folder, 700)
    if way == "alone":
        writer = Alone(aligned, "aligned", ("a",), request)
    else:
        base = engine(said, doubts, "base", 700)
        writer = Nudged(base, aligned, PromptPair(("a",), ("a",)), request, NudgingConfig())
    pieces, finished = await whole(writer, request)
    answer = "".join(piece.text for piece in pieces)
    _check_tokens(pieces, finished, most)
    thought, closed, _ = answer.partition(CLOSES)
    spent = 0
    begun = OPENS if not thinking else ""
    at = ""
    for piece in pieces:
        if at.startswith(begun) and CLOSES not in piece.text and len(at) < len(thought):
            spent += piece.tokens
        at += piece.text
    assert spent < tokens + CHARACTER + (not thinking)  # and the piece in which they began
    assert answer.count(CLOSES) <= 1
    assert closed or spent <= tokens or finished.stop_reason in ("length", "context", *GUARDS)


def _check_tokens(pieces: list[Piece], finished: Finished, most: int | None) -> None:
    tokens = sum(piece.tokens for piece in pieces)
    usage = finished.usage
    written = usage.base_tokens + usage.aligned_tokens
    unfinished = CHARACTER if finished.stop_reason in ("length", "context") else 1
    assert tokens <= written
    assert written - tokens < unfinished or finished.stop_reason in GUARDS
    assert usage.discarded_tokens >= 0
    assert most is None or tokens <= most


@pytest.mark.parametrize("way", ["nudged", "alone"])
@pytest.mark.parametrize("folder", ["aligned", "aligned-1k"])
async def test_what_is_thought_in_time_is_what_it_would_be(way: str, folder: str):
    said = f"{OPENS}\nShe has a job.\n{CLOSES}\n\nShe is a smith."

    async def written(limit: ThinkingLimit | None) -> str:
        request = replace(GREEDY, thinking=limit)
        aligned = engine(said, frozenset(), folder, 700)
        base = engine(said, frozenset({1, 3, 5}), "base", 700)
        pair = PromptPair(("a",), ("a",))
        writer = (
            Alone(aligned, "aligned", ("a",), request)
            if way == "alone"
            else Nudged(base, aligned, pair, request, NudgingConfig())
        )
        pieces, _ = await whole(writer, request)
        return "".join(piece.text for piece in pieces)

    assert await written(limited(100)) == await written(None)
    short = await written(limited(2))
    assert short.count(CLOSES) == 2  # ours, and the script's, which goes by characters
    assert short.index(CLOSES) < said.index(CLOSES)


async def test_a_model_alone_reads_its_own_token_where_its_thoughts_are_ended():
    chat = deepcopy(Tokenizer.load(str(DEMO / "aligned")).chat)
    chat.add_tokens([CLOSES])
    tokenizer, end = Tokenizer(chat), chat.eos_token_id
    read: list[int] = []
    info = EngineInfo("scripted", "text", 700, tokenizer, (end,))
    plain = scripted_text(tokenizer, end, [("I wonder what she does. And so on.", 0.9)])

    def distribution(prompt, output):
        read[:] = output
        return plain(prompt, output)

    request = replace(GREEDY, thinking=limited(3, thinking=True))
    await whole(Alone(ScriptedEngine(info, distribution), "aligned", ("a",), request), request)
    assert chat.convert_tokens_to_ids(CLOSES) in read
