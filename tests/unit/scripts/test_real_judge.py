"""The rules that judge the real pair's answers, and the questions they belong to."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields

import pytest

from scripts.real_judge import Verdict, is_right, judge, wilson
from tests.conftest import ROOT

FILE = ROOT / "docs" / "evaluation" / "real-pair" / "questions.jsonl"
QUESTIONS = [json.loads(line) for line in FILE.read_text("utf-8").splitlines()]
PARIS = {"any": ["Paris"]}


def found(verdict: Verdict) -> set[str]:
    return {each.name for each in fields(verdict) if getattr(verdict, each.name)}


@pytest.mark.parametrize(
    ("text", "finish", "why", "expected"),
    [
        ("The capital is Paris.", "stop", "aligned_end", {"ended", "right"}),
        ("The capital is Paris.", "stop", "stop_string", {"ended", "right"}),
        ("The capital is Paris.", "length", "length", {"right"}),
        ("The capital is Paris.", "stop", "repetition", {"right"}),
        ("The capital is Rome.", "stop", "aligned_end", {"ended"}),
        ("Comparison is hard.", "stop", "aligned_end", {"ended"}),
        ("Paris.\n\nQuestion: And?\nAnswer: Rome", "length", "length", {"right", "next_turn"}),
        ("Rome.\n\nQuestion: And?\nAnswer: Paris", "length", "length", {"next_turn"}),
        ("The question: Paris?", "stop", "aligned_end", {"ended", "right"}),
        ("Answer: Paris.", "stop", "aligned_end", {"ended", "right", "litter"}),
        ("Paris.<|im_end|>", "stop", "aligned_end", {"ended", "right", "litter"}),
        ("", "stop", "aligned_end", {"ended", "litter"}),
        ("Yes, Paris. Yes, Paris. Yes, Paris.", "stop", "", {"ended", "right", "loops"}),
        ("It is Paris. It is. It is Paris.", "stop", "aligned_end", {"ended", "right"}),
        ("Paris and the and then the and then the and then", "length", "", {"right", "loops"}),
        ("| Paris |\n|---|---|---|---|---|---|---|---|---|", "length", "length", {"right"}),
    ],
)  # fmt: skip
def test_what_is_found_in_an_answer(text: str, finish: str, why: str, expected: set[str]):
    assert found(judge(text, finish, why, PARIS)) == expected


def test_good_is_ended_and_right_and_nothing_else():
    assert judge("Paris.", "stop", "aligned_end", PARIS).good
    for text, finish in [
        ("Paris.", "length"),
        ("Rome.", "stop"),
        ("Paris.\nUser: And?", "stop"),
        ("It is Paris. It is Paris. It is Paris.", "stop"),
        ("Answer: Paris", "stop"),
    ]:
        assert not judge(text, finish, "", PARIS).good


@pytest.mark.parametrize(
    ("rules", "right", "wrong"),
    [
        ({"all": ["red", "yellow|green"]}, "Red and green.", "Red and blue."),
        ({"regex": r"a.*b"}, "A\nB", "B\nA"),
        ({"cased": r"\bMOON\b"}, "The MOON", "The moon"),
        ({"words": [2, 3]}, "one two", "one two three four"),
        ({"any": ["10"]}, "It is 10.", "It is 100."),
    ],
)
def test_each_rule_tells_right_from_wrong(rules: dict[str, object], right: str, wrong: str):
    assert is_right(right, rules)
    assert not is_right(wrong, rules)


def test_a_rule_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="smell"):
        is_right("text", {"smell": "roses"})


def test_the_two_splits_have_the_same_kinds_and_no_question_in_common():
    kinds = {
        split: Counter(each["kind"] for each in QUESTIONS if each["split"] == split)
        for split in ("tune", "held_out")
    }
    assert kinds["tune"] == kinds["held_out"]
    assert kinds["tune"].total() * 2 == len(QUESTIONS) >= 240
    assert len({each["id"] for each in QUESTIONS}) == len(QUESTIONS)
    assert len({json.dumps(each["messages"]) for each in QUESTIONS}) == len(QUESTIONS)


def test_what_is_not_to_the_point_is_right_for_no_question():
    for text in ("", "Qwx zzyz.", "I am an AI language model."):
        too_easy = [each["id"] for each in QUESTIONS if is_right(text, each["right"])]
        assert too_easy == [], text


def test_wilson_intervals():
    low, high = wilson(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
