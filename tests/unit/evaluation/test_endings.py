"""How answers end, where their nudges stand, nudges in words, and progress."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from server.cli.progress import Telling, spelled
from server.core import Piece
from server.evaluation import endings
from server.evaluation.runs import nudges
from server.evaluation.words import nudged_words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is 5.\n\nQuestion: And?", True),
        ("It is 5.\nAnswer: 5", True),
        ("It is 5.<|im_end|>", True),
        ("The Question: is it 5? Answer: 5", False),
        ("Answer: 5", False),
        ("It is 5.\nQuest", False),
        ("", False),
    ],
)
def test_the_next_turn_is_found(text: str, found: bool):
    headers = ("\nQuestion:", "\nAnswer:", "<|im_end|>")
    assert endings.next_turn(text, headers) is found
    assert not endings.next_turn(text, ())


@pytest.mark.parametrize(
    ("text", "reason", "is_loop"),
    [
        ("It is so.", "repetition", True),
        ("It is so.", "repeated_round", True),
        ("It is the moon. It is the moon. It is the moon.", "length", True),
        ("It is the moon.\nIt is  the moon.\nIt is the moon.", "aligned_end", True),
        ("It is the moon. It is the moon.", "length", False),
        ("Yes. Yes. Yes. Yes.", "length", False),
        ("It is the moon, the moon, the moon.", "length", False),
    ],
)
def test_a_loop_is_a_guards_or_a_sentence_three_times(text: str, reason: str, is_loop: bool):
    assert endings.looped(text, reason) is is_loop


def piece(text: str, speaker: str) -> Piece:
    return Piece(text, speaker, 0.5, 1)  # type: ignore[arg-type]


def test_where_the_nudges_stand():
    pieces = [
        piece("Yes,", "aligned"),
        piece(" it", "aligned"),
        piece(" is", "base"),
        piece(" so", "base"),
        piece(".", "aligned"),
    ]
    assert nudges(pieces, "decisions") == [(0, 7), (13, 14)]
    assert nudges(pieces, "rounds") == [(0, 4), (4, 7), (13, 14)]
    assert nudges(pieces[2:4], "decisions") == []


@pytest.mark.parametrize(
    ("text", "spans", "share"),
    [
        ("a b c d e f g h", [(0, 3), (7, 9), (14, 15)], 3 / 8),  # the last one is the end
        ("a b c d", [(0, 1)], 1 / 4),  # one at least
        ("a b c d", [], 1 / 4),
        ("a  b", [(0, 1), (1, 3), (3, 4)], 1 / 3),  # blanks are none; an empty word is a word
        ("ab", [(0, 1), (1, 2)], 1.0),
        ("", [], 1.0),
        ("abc d", [(0, 1), (1, 2), (2, 3), (3, 5)], 1.0),  # never over all of them
    ],
)
def test_the_nudged_share_in_words_is_the_authors(text: str, spans, share: float):
    assert nudged_words(text, spans) == pytest.approx(share)


# -- progress -------------------------------------------------------------------------------------


def test_in_a_file_progress_is_a_line_now_and_then():
    now, to = [0.0], io.StringIO()
    console = Console(file=to, width=40)
    with Telling({"base": (10, 20), "nudged": (0, 10)}, console, lambda: now[0]) as telling:
        for _ in range(10):
            now[0] += 4
            telling.advance("base")
        for _ in range(10):
            now[0] += 1
            telling.advance("nudged")
    assert to.getvalue().splitlines() == [
        "base: 14 of 20; in all 14 of 30, about 64 s left",
        "base: 18 of 20; in all 18 of 30, about 48 s left",
        "nudged: 7 of 10; in all 27 of 30, about 8 s left",
        "nudged: 10 of 10; in all 30 of 30, about 0 s left",
    ]


def test_on_a_terminal_progress_is_a_bar():
    to = io.StringIO()
    with Telling({"base": (0, 2)}, Console(file=to, force_terminal=True)) as telling:
        telling.advance("base")
    assert "1/2" in to.getvalue()
    assert "in all" not in to.getvalue()


def test_times_are_spelled():
    assert [spelled(s) for s in (5, 100, 6000)] == ["5 s", "2 min", "1.7 h"]
