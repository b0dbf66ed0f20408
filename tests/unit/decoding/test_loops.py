"""Texts that go round in circles, and texts that don't."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.decoding.loops import CYCLE, RepeatedPhrase, RepeatedSentences, ThirdRounds


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


@pytest.mark.parametrize(
    ("sentence", "doubt", "end"), [("Beach towel", 3, 4), ("Yes", 8, 12), ("A big dog barks", 2, 3)]
)
def test_short_ones_must_come_more_often(sentence: str, doubt: int, end: int):
    for text in ("".join(f"{i}. {sentence}\n" for i in range(1, 20)), f"{sentence}.\n" * 20):
        sentences = RepeatedSentences()
        counted = [sentences.times(line) for line in text.splitlines(keepends=True)]
        assert counted.index(2) + 1 == doubt
        assert counted.index(3) + 1 == end


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


# -- third rounds ----------------------------------------------------------------------------------


def shown(text: str, size: int) -> tuple[str, bool]:
    """What is seen of a text that comes in pieces, and whether a guard ended it."""
    rounds, sentences, phrase = ThirdRounds(), RepeatedSentences(), RepeatedPhrase()
    told = out = 0
    for start in range(0, len(text), size):
        piece = text[start : start + size]
        told += len(piece)
        out = max(out, told - rounds.push(piece))
        if sentences.times(piece) > 2 or phrase.level(piece) > 1:
            return text[:out], True
    return text[:out], False


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize(
    ("before", "cycle"),
    [
        ("", f"{MOON} "),
        ("The moon. ", f"{MOON} The sun shines by day. "),
        ("List:\n", "".join(f"This is sentence {'abcdef'[i]} of it.\n" for i in range(CYCLE))),
        ("Snow", ", a silent witness"),
        ("", "It is so, and it isn't: "),
        ("", WIDE),
    ],
)
def test_of_what_goes_round_two_rounds_are_seen(before: str, cycle: str, size: int):
    seen, ended = shown(before + cycle * 9, size)
    assert ended
    assert seen.rstrip() == (before + cycle * 2).rstrip()


def test_no_word_is_cut_where_a_round_is_found_to_begin_in_one():
    """Here with the "he" of "The" and "the"."""
    now = "The coin is now heads up.\n\n"
    text = "It is flipped, and the coin is now heads up.\n\n" + now * 9
    for size in (1, 3, 8):
        assert shown(text, size) == (text[: text.index(now)] + now + now.rstrip(), True)
    coin = "the silent coin fell and "
    seen, ended = shown(f"Nobody saw that {coin * 9}", 3)
    assert ended
    assert seen.rstrip().endswith(" and")
    assert seen.count("coin") == 2


def test_the_number_of_a_list_s_item_is_not_seen_either():
    text = "".join(f"{i}. **Lemon and cherry**\n" for i in range(1, 9))
    assert shown(text, 3) == ("1. **Lemon and cherry**\n2. **Lemon and cherry**", True)


@pytest.mark.parametrize(
    ("text", "late"),
    [
        (f"{MOON} {MOON} It is the only one.", 0),
        ("A b c d e f g h. " * 2 + "A b c d e", 10),
        (f"{MOON} {MOON} The sun.", 0),
        (" a silent witness," * 2 + " a silent one", 0),
        ("| a | b |\n|---|---|\n" + "| no | no |\n" * 3 + "| yes | no |\n", 0),
        (f"{MOON} {MOON} It is the", len(" It is the")),
    ],
)
def test_what_turns_out_to_be_another_text_is_seen_as_soon_as_it_does(text: str, late: int):
    seen, ended = shown(text, 1)
    assert not ended
    assert seen == text[: len(text) - late]


def test_what_has_no_text_lets_nothing_go():
    rounds = ThirdRounds()
    waits = rounds.push(f"{MOON} {MOON} ") and rounds.push(f"{MOON} It")
    assert waits == rounds.push("") == len(f" {MOON} It")


def test_what_nobody_ended_is_seen():
    """Where the guards are off."""
    rounds = ThirdRounds()
    text = f"{MOON} " * 8
    waits = [rounds.push(text[i : i + 2]) for i in range(0, len(text), 2)]
    assert max(waits) <= 2 * (len(MOON) + 2)
    assert not any(waits[len(waits) // 2 :])
    phrase = [rounds.push(" a silent witness,") for _ in range(30)]
    assert not any(phrase[10:])


PARTS = [f"{MOON} ", f"2. {MOON}\n", "The sun shines by day. ", "\n", " x ", "3.", "so it goes, "]


@given(st.lists(st.sampled_from(PARTS), max_size=40), st.integers(1, 9))
def test_nothing_is_seen_three_times_where_that_ended_the_text(parts: list[str], size: int):
    text = "".join(parts)
    seen, ended = shown(text, size)
    assert text.startswith(seen)
    if ended:
        assert most(seen, 1) <= 2


@given(st.lists(st.sampled_from(PARTS), max_size=40), st.integers(1, 9))
def test_a_text_waits_for_no_more_than_its_last_rounds(parts: list[str], size: int):
    text = "".join(parts)
    sentences = RepeatedSentences()
    if max((sentences.times(part) for part in parts), default=0) < 2 and not levels(text, 1):
        assert len(shown(text, size)[0]) >= len(text) - 24
