"""Texts that go round in circles, and texts that don't."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.decoding.loops import CYCLE, RepeatedSentences


def most(text: str, size: int = 3) -> int:
    sentences = RepeatedSentences()
    return max((sentences.times(text[i : i + size]) for i in range(0, len(text), size)), default=0)


MOON = "It is the only satellite of the earth."


@pytest.mark.parametrize("size", [1, 3, 8, 1000])
@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_a_sentence_is_counted_as_soon_as_it_is_there(times: int, size: int):
    assert most(" ".join([MOON] * times), size) == times
    assert most("\n".join([MOON[:-1]] * times) + "\n", size) == times


@pytest.mark.parametrize("length", [2, 3, CYCLE])
def test_so_are_several_together(length: int):
    cycle = [f"This is sentence number {'abcdefgh'[i]}." for i in range(length)]
    assert most(" ".join(cycle * 3)) == 3
    assert most(" ".join([*cycle, "Here is another thing.", *cycle])) == 1


def test_case_punctuation_and_spaces_do_not_matter():
    assert most("It is a very big dog.  it is a very, big dog!\nIt is a VERY big dog.\n") == 3


WIDE = "\u5b83\u662f\u5730\u7403\u7684\u536b\u661f\u3002"


def test_sentences_of_scripts_without_spaces_count():
    assert most(WIDE * 3, 1) == 3


@pytest.mark.parametrize(
    "text",
    [
        "1. Apples\n2. Pears\n3. Plums\n4. Grapes\n",
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 1 | 2 |\n| 1 | 2 |\n",
        "No. No. No. No. Never again, she said.",
        "for i in a:\n    if i:\n        pass\n    else:\n        pass\n    x = 1\n    }\n}\n}\n",
        "The price is 3.50 dollars. The price is 3.75 dollars. The price is 3.95 dollars.",
        "Yes.\nYes.\nYes.\n",
        f"{MOON} It shines at night. {MOON} The sun shines by day. {MOON}",
    ],
)
def test_what_only_looks_like_it_is_no_loop(text: str):
    for size in (1, 4, 1000):
        assert most(text, size) <= 1


@given(st.lists(st.sampled_from([MOON, "The sun shines by day. ", "\n", " x ", "3.", "5 "])))
def test_each_is_told_of_once_however_it_is_cut(parts):
    text = "".join(parts)

    def counted(size: int) -> list[int]:
        sentences = RepeatedSentences()
        found = [sentences.times(text[i : i + size]) for i in range(0, len(text), size)]
        return [times for times in found if times > 1]

    assert counted(1) == counted(2)
