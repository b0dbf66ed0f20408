"""Texts that go round in circles, and texts that don't."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.decoding.loops import CYCLE, RepeatedPhrase, RepeatedSentences


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


def test_neither_does_the_number_of_a_list_s_item():
    text = "1. **Eggs**\n" + "".join(f"{i}. **Lemon and cherry**\n" for i in range(2, 6))
    sentences = RepeatedSentences()
    assert [sentences.times(line) for line in text.splitlines(keepends=True)] == [0, 1, 2, 3, 4]
    numbers = RepeatedSentences()
    assert (
        max(numbers.times(f"{i}. {i} and {i + 1} are {2 * i + 1} in all\n") for i in range(9)) == 1
    )


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


@given(st.lists(st.sampled_from([f"{MOON} ", "The sun shines by day. ", "\n", " x ", "3.", "5 "])))
def test_each_is_told_of_once_however_it_is_cut(parts):
    text = "".join(parts)

    def counted(size: int) -> list[int]:
        sentences = RepeatedSentences()
        found = [sentences.times(text[i : i + size]) for i in range(0, len(text), size)]
        return [times for times in found if times > 1]

    assert counted(1) == counted(2)


# -- phrases ---------------------------------------------------------------------------------------


def levels(text: str, size: int = 3) -> list[int]:
    phrase = RepeatedPhrase()
    found = [phrase.level(text[i : i + size]) for i in range(0, len(text), size)]
    return [level for level in found if level]


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize(
    "phrase",
    [" a fleeting beauty,", " with a container", "\U0001f31f", "0000 * 1", "<h1>Hi</h1>\n"],
)
def test_a_phrase_that_comes_again_and_again_is_told_of_twice(phrase: str, size: int):
    assert levels(f"Snow,{phrase * (100 // len(phrase) + 4)}", size) == [1, 2]
    assert levels(f"Snow,{phrase * 2} and rain.", size) == []


def test_once_it_has_stopped_it_can_begin_again():
    assert levels(f"Snow{' is white,' * 6} the sun shines by day and night{' is white,' * 6}") == [
        1,
        1,
    ]


@pytest.mark.parametrize(
    "text",
    [
        "-" * 200,
        "| --- " * 30 + "|\n",
        "\n" * 100,
        " " * 100,
        "ha ha ha ha ha ha ha!",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23",
        "".join(f"    x{i} = read(f{i})\n" for i in range(20)),
        "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily.",
    ],
)
def test_lines_tables_and_lists_are_no_phrases(text: str):
    for size in (1, 4, 1000):
        assert levels(text, size) == []
