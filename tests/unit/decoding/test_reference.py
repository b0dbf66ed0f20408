"""The authors' procedure, step by step, on completions written by hand.

Each test is a conversation: what is asked of which model, and what that model answers. The
parity with the authors' own code was checked against a live server (docs/policies.md).
"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.decoding.reference import (
    Ask,
    Completion,
    NoRoom,
    Outcome,
    reference,
    without_repeated_tail,
)


def draft(text: str, finish: str = "length") -> Completion:
    return Completion(text, [text], [0.0], finish)


def base(*tokens: tuple[str, float], finish: str = "length") -> Completion:
    """Tokens with their top-1 probabilities."""
    texts = [text for text, _ in tokens]
    return Completion("".join(texts), texts, [math.log(p) for _, p in tokens], finish)


def converse(*answers: Completion, gamma=0.5, max_tokens=100, max_rounds=150, count=None):
    """Run the procedure on the given completions; returns what it asked and its outcome."""
    words = count or (lambda text: len(text.split()))
    steps = reference(gamma, max_tokens, max_rounds, words)
    asks: list[Ask] = []
    waiting = list(answers)
    try:
        ask = next(steps)
        while True:
            asks.append(ask)
            ask = steps.send(waiting.pop(0))
    except StopIteration as stop:
        assert not waiting, "not every completion was asked for"
        return asks, stop.value


def test_an_aligned_model_that_ends_is_taken_whole():
    asks, outcome = converse(draft("Hello there.", "stop"))
    assert asks == [Ask("aligned", "")]
    assert outcome == Outcome("Hello there.", [("Hello there.", "")], "nudging_model_stop")


def test_an_aligned_model_that_ends_at_once_adds_no_round():
    assert converse(draft("", "stop"))[1] == Outcome("", [], "nudging_model_stop")


def test_the_base_model_takes_over_at_the_first_word_it_agrees_with():
    asks, outcome = converse(
        draft("The cat sat"),
        base((" cat", 0.1), (" ran", 0.9), (" off", 0.2)),  # agrees with " cat", though p1 < γ
        draft("", "stop"),
    )
    assert asks == [Ask("aligned", ""), Ask("base", "The"), Ask("aligned", "The cat ran")]
    assert outcome.rounds == [("The", " cat ran")]


def test_part_of_a_word_agrees_too():
    asks, _ = converse(draft("The cat"), base((" c", 0.1), ("ow", 0.1)), draft("", "stop"))
    assert asks[-1] == Ask("aligned", "The c")


def test_without_agreement_it_takes_over_where_it_is_confident():
    asks, _ = converse(
        draft("A b c d"),
        base((" x", 0.1)),
        base((" y", 0.5), (" z", 0.1)),
        draft("", "stop"),
    )
    assert asks[1:] == [Ask("base", "A"), Ask("base", "A b"), Ask("aligned", "A b y")]


def test_where_it_takes_over_nowhere_all_but_the_last_word_stand():
    asks, outcome = converse(
        draft(" A b c"), base((" x", 0.1)), base((" x", 0.1)), draft("", "stop")
    )
    assert outcome.rounds == [(" A b", "")]
    assert asks[-1] == Ask("aligned", " A b")


def test_a_single_word_stands_without_asking_the_base_model():
    asks, outcome = converse(draft("  Hi"), draft("", "stop"))
    assert asks == [Ask("aligned", ""), Ask("aligned", "  Hi")]
    assert outcome.rounds == [("  Hi", "")]


def test_only_the_plain_space_divides_words():
    asks, _ = converse(draft("A\nb"), draft("", "stop"))
    assert asks[-1] == Ask("aligned", "A\nb")


def test_an_empty_word_of_a_double_space_is_skipped_and_leaves_a_trailing_space():
    asks, _ = converse(draft("A  b"), base((" b", 0.1), ("x", 0.1)), draft("", "stop"))
    assert asks[1] == Ask("base", "A ")


def test_a_trailing_empty_word_counts_as_the_running_index():
    asks, outcome = converse(draft("A b "), base((" x", 0.1)), draft("", "stop"))
    assert outcome.rounds == [("A b", "")]
    assert asks[1] == Ask("base", "A")


def test_a_base_model_at_its_end_agrees_with_anything_and_writes_nothing():
    asks, outcome = converse(draft("A b c"), base(("", 0.9), finish="stop"), draft("", "stop"))
    assert outcome.rounds == [("A", "")]
    assert asks[-1] == Ask("aligned", "A")


def test_the_accepted_first_token_is_never_tested_against_gamma():
    _, outcome = converse(
        draft("A b c"), base((" b", 0.01), (" c", 0.9), (" d", 0.1)), draft("", "stop")
    )
    assert outcome.rounds == [("A", " b c")]


def test_a_whole_confident_chunk_asks_for_another():
    asks, outcome = converse(
        draft("A b"),
        base((" b", 0.9), (" c", 0.9)),
        base((" d", 0.9), (" e", 0.1)),
        draft("", "stop"),
    )
    assert asks[2] == Ask("base", "A b c")
    assert outcome.rounds == [("A", " b c d")]


def test_a_stop_of_the_accepting_response_is_ignored_and_of_a_fresh_one_ends_the_run():
    asks, outcome = converse(
        draft("A b"),
        base((" b", 0.9), (" c", 0.9), ("", 0.9), finish="stop"),
        base((" d", 0.9), ("", 0.9), finish="stop"),
        draft("", "stop"),
    )
    assert [ask.speaker for ask in asks] == ["aligned", "base", "base", "aligned"]
    assert outcome.rounds == [("A", " b c d")]


def test_a_chunk_that_was_written_before_ends_the_run():
    asks, _ = converse(
        draft("A b"),
        base((" b", 0.9), (" c", 0.9)),
        base((" b", 0.9), (" c", 0.9)),  # already in " b c"
        draft("", "stop"),
    )
    assert asks[-1] == Ask("aligned", "A b c")


def test_a_response_of_one_token_ends_the_run():
    asks, _ = converse(draft("A b"), base((" b", 0.9)), draft("", "stop"))
    assert asks[-1] == Ask("aligned", "A b")


def test_a_long_stretch_that_occurred_before_is_discarded():
    earlier = "a b c d e f g"
    # The draft ends the round with `earlier` committed (its last word is dropped).
    words = earlier.split()
    refusals = [base((" x", 0.1)) for _ in words]
    asks, outcome = converse(
        draft(earlier + " tail"),
        *refusals,
        draft("Z y"),
        base((" y", 0.9), *[(f" {word}", 0.9) for word in words[1:]], (" w", 0.1)),
        draft("", "stop"),
    )
    assert outcome.rounds[1] == ("Z", " y")
    assert asks[-1].text.endswith("gZ y")


def test_the_same_words_three_more_times_end_the_answer_without_them():
    _, outcome = converse(draft("Ha"), draft("Ha"), draft("Ha"), draft("Ha"))
    assert outcome.stop_reason == "repeated_nudging_words"
    assert outcome.text == "HaHaHa"


def test_empty_words_count_as_repeated_from_the_start():
    _, outcome = converse(draft(""), draft(""), draft(""))
    assert outcome == Outcome("", [("", ""), ("", "")], "repeated_nudging_words")


def test_length_and_rounds_end_it():
    drafts = [draft(f"w{number} x") for number in range(5)]
    answers = [each for pair in zip(drafts, [base((" q", 0.1))] * 5, strict=True) for each in pair]
    assert converse(*answers[:6], count=lambda t: t.count("w"), max_tokens=3)[1].stop_reason == (
        "length"
    )
    assert converse(*answers[:4], max_rounds=2)[1].stop_reason == "round"


def test_the_base_run_ends_at_the_length_limit():
    asks, outcome = converse(
        draft("A b"), base((" b", 0.9), (" c", 0.9), (" d", 0.9)), max_tokens=4
    )
    assert outcome.rounds == [("A", " b c d")]
    assert outcome.stop_reason == "length"
    assert len(asks) == 2


def test_a_full_context_ends_the_answer_with_what_there_is():
    steps = reference(0.5, 100, 150, len)
    next(steps)
    steps.send(draft("One"))
    with pytest.raises(StopIteration) as stop:
        steps.throw(NoRoom())
    assert stop.value.value == Outcome("One", [("One", "")], "context")


def test_a_repeated_tail_is_dropped():
    doubled = "x" + ("abcdefghij" * 4) * 2
    assert without_repeated_tail(doubled) == "x" + "abcdefghij" * 4


def test_a_short_repeated_tail_stays():
    assert without_repeated_tail("ab" * 10) == "ab" * 10


@given(st.text(alphabet="ab ", max_size=120))
def test_the_tail_search_is_the_authors_binary_search(text):
    """Against the definition as the specification words it, kept naive on purpose."""

    def search(s: str) -> int:
        left, right, result = 0, len(s), 0
        while left <= right:
            mid = (left + right) // 2
            hit = mid >= 30 and s[: len(s) - mid].endswith(s[len(s) - mid :])
            if hit:
                left, result = mid + 1, mid
            else:
                right = mid - 1
        return result

    expected = text.strip()
    while found := search(expected):
        expected = expected[: len(expected) - found]
    assert without_repeated_tail(text) == expected
