"""From pieces to parts: a parser sees the special tokens, and nobody sees them as text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.extension import pieces as traced
from server.core import (
    AnswerRequest,
    Finished,
    NudgingConfig,
    Piece,
    PromptPair,
    SamplingParams,
    ScoredToken,
)
from server.decoding.alone import Alone
from server.decoding.nudged import Nudged
from server.decoding.parsing import Content, Plain
from server.decoding.rules import WORD_TOKENS
from server.decoding.stream import Writer, cut, whole
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

MARK = "<|im_start|>"
GREEDY = AnswerRequest(SamplingParams(temperature=0))


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(DEMO / "aligned"))


def ids(*parts: str) -> list[int]:
    """Of texts, and of marks."""
    own = tokenizer()
    mark = own.chat.convert_tokens_to_ids(MARK)
    return [i for part in parts for i in ([mark] if part == MARK else own.encode_text(part))]


def of_ids(script: Sequence[int], top_prob: float = 0.9) -> ScriptedEngine:
    """An engine that writes these ids, whatever they are, and ends."""
    own = tokenizer()
    end = own.chat.eos_token_id
    assert end not in script

    def distribution(prompt: Sequence[int], output: Sequence[int]) -> list[tuple[int, float]]:
        wanted = script[len(output)] if len(output) < len(script) else end
        return [(wanted, top_prob), (5, 1 - top_prob)]

    return ScriptedEngine(EngineInfo("scripted", "ids", 512, own, (end,)), distribution)


def writer(kind: str, script: Sequence[int], request: AnswerRequest) -> Writer:
    engine, unsure, pair = of_ids(script), of_ids(script, 0.55), PromptPair(("a ",), ("a ",))
    if kind == "alone":
        return Alone(engine, "aligned", ("a ",), request)
    ahead = 4 if kind == "ahead" else 0
    config = NudgingConfig(gamma=0.6, end_lookahead=ahead)
    return Nudged(unsure, engine, pair, request, config)


KINDS = pytest.mark.parametrize("kind", ["alone", "nudged", "ahead"])


def seen(pieces: Sequence[Piece]) -> str:
    """The text with the marks where they stand."""
    found = ""
    for piece in pieces:
        at = 0
        for offset, mark in piece.markers:
            found, at = found + piece.text[at:offset] + mark, offset
        found += piece.text[at:]
    return found


def shown(pieces: Sequence[Piece]) -> str:
    return "".join(part.piece.text for piece in pieces for part in Plain().push(piece))


@KINDS
@pytest.mark.parametrize(
    "parts",
    [
        (MARK, "One two three"),
        ("One two", MARK, " three"),
        ("One", MARK, MARK, " two 漢字", MARK, "é 😀 three"),
        ("One", MARK, "two three"),
    ],
)
async def test_a_special_token_is_seen_where_it_stands_and_is_no_text(
    kind: str, parts: tuple[str, ...]
):
    pieces, finished = await whole(writer(kind, ids(*parts), GREEDY), GREEDY)
    assert seen(pieces) == "".join(parts)
    assert shown(pieces) == "".join(parts).replace(MARK, "")
    assert all(piece.text for piece in pieces)
    assert finished.finish_reason == "stop"


async def test_a_word_without_text_is_seen_in_front_of_the_other_models():
    """So long that it is cut; then the base model writes."""
    marks = [MARK] * WORD_TOKENS
    base, aligned = of_ids(ids(" two three")), of_ids(ids(*marks))
    pair, config = PromptPair(("a",), ("a",)), NudgingConfig(gamma=0.6)
    pieces, _ = await whole(Nudged(base, aligned, pair, GREEDY, config), GREEDY)
    assert seen(pieces) == "".join(marks) + " two three"
    assert {piece.speaker for piece in pieces} == {"base"}


async def test_one_at_the_end_is_seen_and_shows_nothing():
    script = ids("One", MARK, " two", MARK)
    pieces, finished = await whole(writer("alone", script, GREEDY), GREEDY)
    assert seen(pieces) == f"One{MARK} two{MARK}"
    *_, last = pieces
    assert last.only_tokens
    assert [*Plain().push(last)] == []
    assert [*Plain().end(finished)] == [finished]


@pytest.mark.parametrize("stop", [(), ("three",)])
@pytest.mark.parametrize("speaker", ["base", "aligned"])
async def test_one_behind_all_text_of_both_is_seen_too(speaker: str, stop: tuple[str, ...]):
    mark = "<|bos|>"  # ends nobody's turn
    text = ids("One two")
    marked = [*text, tokenizer().chat.convert_tokens_to_ids(mark)]
    base, aligned = (of_ids(marked if each == speaker else text) for each in ("base", "aligned"))
    request = AnswerRequest(SamplingParams(temperature=0), stop=stop)
    nudged = Nudged(base, aligned, PromptPair(("a ",), ("a ",)), request, NudgingConfig(gamma=0.6))
    pieces, finished = await whole(nudged, request)
    assert finished.stop_reason == "aligned_end"
    assert seen(pieces) == f"One two{mark}"
    # Whoever reads the answer or its trace has nothing of it.
    assert pieces[-1].only_tokens
    assert shown(pieces) == "One two"
    assert "".join(piece["text"] for piece in traced(pieces)) == "One two"
    assert all(piece["text"] for piece in traced(pieces))


async def test_what_spells_a_special_token_is_text():
    script = tokenizer().encode_text(f"a {MARK} b")
    pieces, _ = await whole(writer("alone", script, GREEDY), GREEDY)
    assert shown(pieces) == f"a {MARK} b"
    assert not any(piece.markers for piece in pieces)


@given(st.text("aé😀 ", max_size=8), st.data())
def test_a_piece_is_cut_into_two_that_have_all_of_it(text: str, data: st.DataObject):
    at = data.draw(st.integers(0, len(text)))
    offsets = st.lists(st.integers(0, len(text)), max_size=4).map(sorted)
    markers = tuple((offset, str(n)) for n, offset in enumerate(data.draw(offsets)))
    scored = tuple(ScoredToken(char.encode(), -0.1) for char in text)
    piece = Piece(text, "base", 0.5, len(text), scored=scored, markers=markers)
    first, second = cut(piece, at)
    assert seen([first, second]) == seen([piece])
    assert len(first.text) == at
    for each in (first, second):
        assert b"".join(token.data for token in each.scored) == each.text.encode()
    assert all(offset < at for offset, _ in first.markers)


def test_a_piece_without_any_token_is_content():
    """As the authors' procedure writes an empty nudge, which is in its trace."""
    empty = Piece("", "aligned", 0.0, 0)
    assert [*Plain().push(empty)] == [Content(empty)]
    scored = Piece("", "aligned", 0.5, 1, scored=(ScoredToken(b"", -0.1, (), "end"),))
    assert [*Plain().push(scored)] == [Content(scored)]


def test_the_end_is_the_end():
    finished = Finished("length", Alone(of_ids([7]), "base", ("a",), GREEDY).usage())
    assert [*Plain().end(finished)] == [finished]
