"""Turn headers in text that comes in pieces."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.text.headers import SPACE, TurnHeaders

HEADERS = ("\nQuestion:", "\nAnswer:", "<|im_end|>")


def read(pieces: list[str], headers: tuple[str, ...] = HEADERS) -> tuple[str, str | None]:
    """What goes out, and the header that ends it, if one does."""
    found, out = TurnHeaders(headers), ""
    for piece in pieces:
        free = found.push(piece)
        out += found.held[:free]
        found.release(free)
        if found.found:
            return out, found.held
    return out + found.held, None


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("Paris.\n\nQuestion: What", "Paris."),
        ("Paris.  \n \n  Question: What", "Paris.  "),
        ("Paris. Question: What", None),
        ("Paris.\nQuestions: What", None),
        ("Paris.\nAnswer:", "Paris."),
        ("  Answer: Paris", ""),
        ("Paris<|im_end|>\n", "Paris"),
        ("Paris<|im_start|>", None),
        ("a\n\n\nb\n- Question: c", None),
        ("a" + "\n" * (SPACE + 1) + "Question:", "a\n"),
        ("a\nQues\nQuestion:", "a\nQues"),
    ],
)
def test_a_header_counts_at_a_lines_beginning(text: str, out: str | None):
    for size in (1, 2, 3, 7, len(text)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        got, found = read(pieces)
        assert (got, found is None) == (text if out is None else out, out is None)


alphabet = st.sampled_from(
    ["\n", " ", "Question:", "Quest", "ion:", "Answer:", "a", "<|im_", "end|>"]
)


@given(st.lists(alphabet, max_size=12), st.lists(st.integers(1, 5), min_size=1))
def test_the_cuts_do_not_matter_and_it_is_what_the_expression_finds(parts, sizes):
    text = "".join(parts)
    cut, pieces, place = 0, [], 0
    while place < len(text):
        pieces.append(text[place : place + sizes[cut % len(sizes)]])
        place += sizes[cut % len(sizes)]
        cut += 1
    out, found = read(pieces)
    first = re.search(r"((?:^\s*?|\n)\s*(?:Question:|Answer:)|<\|im_end\|>)", text)
    assert out == (text if first is None else text[: first.start()])
    assert (found is None) == (first is None)


@given(st.lists(alphabet, max_size=12))
def test_nothing_is_held_that_can_become_no_header(parts):
    """What is held is white space from a line's break on and the beginning of a header."""
    found = TurnHeaders(HEADERS)
    for part in parts:
        found.release(found.push(part))
        if found.found:
            return
        body = found.held.lstrip()
        headers = [header.strip() for header in HEADERS]
        assert found.held == "" or any(header.startswith(body) for header in headers)


def test_without_headers_nothing_is_held():
    assert read(["a\n", "Question:"], ()) == ("a\nQuestion:", None)
    assert read(["\n"], ("\n  ",)) == ("\n", None)


def test_a_line_begins_where_somebody_else_ended_one():
    found = TurnHeaders(HEADERS)
    found.hear("Paris.")
    assert not found.begins_line()
    assert found.push("Question:") == len("Question:")
    found.release(len("Question:"))
    found.hear(" Yes\n ")
    assert found.begins_line()
    assert found.push("Question:") == 0
    assert found.found
