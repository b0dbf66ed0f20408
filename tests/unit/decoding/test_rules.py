"""The policy as event sequences. No engine, no text processing, no clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core import NudgingConfig
from server.decoding.rules import Nudging, RepeatedBlock, Turn


def play(policy: Nudging, *events: object) -> str:
    """Feed events and return the committed text.

    A str is a word; ``(text, p1)`` a base token; ``"."`` alone the base model's stop; None the
    aligned model's end.
    """
    text = ""
    for number, event in enumerate(events):
        match event:
            case None:
                policy.aligned_ended()
            case ".":
                policy.base_stopped()
            case str():
                policy.word(event)
                text += event
            case (piece, p1):
                # Ids differ from event to event, so that no block repeats by accident.
                if policy.base_token(1000 + number, p1, piece):
                    text += piece
    return text


def test_the_aligned_model_starts_by_default_and_the_base_model_as_in_the_paper():
    assert Nudging(NudgingConfig()).turn is Turn.ALIGNED
    assert Nudging(NudgingConfig(start="base")).turn is Turn.BASE


def test_after_one_word_the_base_model_speaks():
    policy = Nudging(NudgingConfig())
    policy.word("Sure")
    assert policy.turn is Turn.BASE


def test_the_base_model_goes_on_while_it_is_confident():
    policy = Nudging(NudgingConfig(gamma=0.4))
    assert play(policy, "Sure", (" it", 0.9), (" is", 0.41)) == "Sure it is"
    assert policy.turn is Turn.BASE


def test_the_first_uncertain_token_is_discarded_and_the_aligned_model_speaks():
    policy = Nudging(NudgingConfig(gamma=0.4))
    assert play(policy, "Sure", (" it", 0.9), (" was", 0.39)) == "Sure it"
    assert policy.turn is Turn.ALIGNED


def test_p1_equal_to_gamma_is_confident():
    policy = Nudging(NudgingConfig(gamma=0.4))
    assert play(policy, "Sure", (" it", 0.4)) == "Sure it"


def test_the_base_models_end_of_text_ends_nothing():
    policy = Nudging(NudgingConfig())
    play(policy, "Sure", (" it", 0.9), ".")
    assert policy.turn is Turn.ALIGNED
    assert policy.stop_reason is None


def test_only_the_aligned_models_end_is_an_end():
    policy = Nudging(NudgingConfig())
    play(policy, "Sure", (" it", 0.9), ".", None)
    assert policy.turn is Turn.DONE
    assert policy.stop_reason == "aligned_end"


def test_with_gamma_zero_the_base_model_is_never_uncertain():
    policy = Nudging(NudgingConfig(gamma=0))
    assert play(policy, "Sure", (" a", 0.0), (" b", 1e-9)) == "Sure a b"


def test_with_gamma_over_one_the_base_model_is_never_asked():
    policy = Nudging(NudgingConfig(gamma=1.01, start="base"))
    for word in ("Sure", " thing", " boss") * 100:
        assert policy.turn is Turn.ALIGNED
        policy.word(word)
    assert policy.turn is Turn.ALIGNED  # and no guard cuts the aligned model's own answer


def test_with_gamma_one_only_a_certain_token_passes():
    policy = Nudging(NudgingConfig(gamma=1))
    assert play(policy, "Sure", (" a", 1.0), (" b", 0.999999)) == "Sure a"


def test_consecutive_words_are_one_nudge_and_one_round():
    policy = Nudging(NudgingConfig())
    play(policy, "Sure", ".", " it", ".", " is", (" so", 0.9), ".")
    assert policy.rounds == 1
    play(policy, " and", (" on", 0.9))
    assert policy.rounds == 2


def test_the_base_span_before_the_first_nudge_is_no_round():
    policy = Nudging(NudgingConfig(start="base"))
    play(policy, ("It", 0.9), (" is", 0.9), ".")
    assert policy.rounds == 0
    play(policy, " so")
    assert policy.rounds == 1


def test_the_same_round_four_times_running_ends_the_answer():
    policy = Nudging(NudgingConfig())
    for _ in range(3):
        play(policy, " ha", (" ho", 0.9), ".")
        assert policy.turn is Turn.ALIGNED
    play(policy, " ha", (" ho", 0.9), ".")
    assert policy.stop_reason == "repeated_round"


def test_a_different_round_starts_the_count_again():
    policy = Nudging(NudgingConfig())
    for word in (" ha", " ha", " ha", " hi", " ha", " ha", " ha"):
        play(policy, word, (" ho", 0.9), ".")
    assert policy.turn is Turn.ALIGNED


def test_empty_rounds_count_as_the_same_round():
    policy = Nudging(NudgingConfig())
    for _ in range(4):
        assert policy.turn is Turn.ALIGNED
        play(policy, "", ".")
    assert policy.stop_reason == "repeated_round"


def test_empty_words_end_the_answer_also_when_the_base_model_is_never_asked():
    policy = Nudging(NudgingConfig(gamma=2))
    for _ in range(4):
        policy.word("")
    assert policy.stop_reason == "repeated_round"


def test_no_round_begins_after_max_rounds():
    policy = Nudging(NudgingConfig(max_rounds=3))
    for word in ("a", "b", "c"):
        assert policy.turn is Turn.ALIGNED
        play(policy, word, (word, 0.9), ".")
    assert policy.stop_reason == "max_rounds"
    assert policy.rounds == 3


def test_a_block_three_times_running_counts_as_uncertain_and_ends_the_second_time():
    policy = Nudging(NudgingConfig())
    block = [1, 2, 3, 4, 5]
    policy.word("So")
    for token in block * 3:
        assert policy.turn is Turn.BASE
        assert policy.base_token(token, 0.9, str(token))
    assert policy.turn is Turn.ALIGNED  # handed over, and what was written stays
    policy.word(" then")
    for token in block * 3:
        assert policy.turn is Turn.BASE
        policy.base_token(token, 0.9, str(token))
    assert policy.stop_reason == "repetition"


def test_a_block_is_counted_within_one_base_turn_only():
    policy = Nudging(NudgingConfig())
    for word in ("a", "b", "c", "d"):
        policy.word(word)
        for token in [1, 2, 3, 4, 5] * 2:
            policy.base_token(token, 0.9, "x")
        policy.base_stopped()
    assert policy.turn is Turn.ALIGNED


def test_a_lookahead_that_ends_is_committed_whole_and_ends_the_answer():
    policy = Nudging(NudgingConfig(end_lookahead=16))
    policy.ending(" Bye, and take care.")
    assert policy.stop_reason == "aligned_end"
    assert policy.rounds == 1


@pytest.mark.parametrize("reason", ["length", "context", "stop_string"])
def test_running_out_of_room_ends_whoever_speaks(reason):
    for start in ("base", "aligned"):
        policy = Nudging(NudgingConfig(start=start))
        policy.out_of_room(reason)
        assert policy.turn is Turn.DONE
        assert policy.stop_reason == reason


def test_the_first_reason_to_stop_is_the_one_that_counts():
    policy = Nudging(NudgingConfig())
    policy.aligned_ended()
    policy.out_of_room("length")
    assert policy.stop_reason == "aligned_end"


def test_an_event_of_the_wrong_speaker_is_a_bug_and_says_so():
    with pytest.raises(RuntimeError, match="BASE"):
        Nudging(NudgingConfig()).base_stopped()
    with pytest.raises(RuntimeError, match="ALIGNED"):
        Nudging(NudgingConfig(start="base")).word("x")


@given(
    gamma=st.floats(0, 1),
    p1s=st.lists(st.floats(0, 1), max_size=60),
    start=st.sampled_from(["base", "aligned"]),
)
def test_every_committed_base_token_has_p1_of_gamma_or_more(gamma, p1s, start):
    policy = Nudging(NudgingConfig(gamma=gamma, start=start, max_rounds=1000))
    for number, p1 in enumerate(p1s):
        if policy.turn is Turn.ALIGNED:
            policy.word(f" w{number}")
        if policy.turn is Turn.BASE:
            committed = policy.base_token(number, p1, f" b{number}")
            assert committed == (p1 >= gamma)
            assert (policy.turn is Turn.BASE) == committed


@given(words=st.lists(st.text(max_size=3), max_size=40), gamma=st.floats(1.0001, 9))
def test_over_one_the_answer_is_the_aligned_models_own(words, gamma):
    words = [f"{word}{number}" for number, word in enumerate(words)]
    policy = Nudging(NudgingConfig(gamma=gamma))
    assert play(policy, *words, None) == "".join(words)
    assert policy.stop_reason == "aligned_end"


def brute_force_repeats(tokens: list[int]) -> bool:
    return any(
        len(tokens) >= 3 * n and tokens[-n:] == tokens[-2 * n : -n] == tokens[-3 * n : -2 * n]
        for n in range(5, 65)
    )


@given(
    head=st.lists(st.integers(0, 3), max_size=30),
    block=st.lists(st.integers(0, 3), min_size=1, max_size=70),
    times=st.integers(1, 4),
)
def test_repeated_blocks_are_found_exactly_where_they_are(head, block, times):
    found = RepeatedBlock()
    tokens: list[int] = []
    for token in head + block * times:
        tokens.append(token)
        assert found.repeats(token) == brute_force_repeats(tokens)


def test_guards_end_nothing_while_they_are_off():
    policy = Nudging(NudgingConfig(gamma=0.5, max_rounds=3))
    policy.guarded = False
    for _ in range(20):
        policy.word(" again")
        policy.base_stopped()
    assert policy.turn is Turn.ALIGNED
    policy.word(" x")
    for number in range(200):  # a block of five, over and over
        if policy.turn is Turn.ALIGNED:
            policy.word(" x")
        policy.base_token(number % 5, 0.9, "b")
    assert policy.turn is not Turn.DONE
    policy.guarded = True
    while policy.turn is Turn.BASE:
        policy.base_token(1, 0.9, "b")
    assert policy.stop_reason in ("max_rounds", "repetition")


def test_rounds_without_any_text_end_it_even_so():
    policy = Nudging(NudgingConfig())
    policy.guarded = False
    for _ in range(4):
        assert policy.turn is Turn.ALIGNED
        policy.word("")
        policy.base_stopped()
    assert policy.stop_reason == "repeated_round"


def test_words_without_text_end_even_where_the_nudge_began_with_one():
    policy = Nudging(NudgingConfig())
    policy.guarded = False
    policy.word("Well")
    for _ in range(20):
        if policy.turn is Turn.DONE:
            break
        policy.base_stopped()
        if policy.turn is Turn.ALIGNED:
            policy.word("")
    assert policy.stop_reason == "repeated_round"


# -- where a line ends, and sentences that come again ---------------------------------------------


def test_at_a_lines_end_the_aligned_model_may_end_the_answer():
    policy = Nudging(NudgingConfig())
    play(policy, "Sure", (" it", 0.9))
    assert policy.checks_ends
    policy.ended_at_break()
    assert (policy.turn, policy.stop_reason) == (Turn.DONE, "aligned_end")
    assert not Nudging(NudgingConfig(end_check="off")).checks_ends
    policy = Nudging(NudgingConfig())
    policy.guarded = False
    assert not policy.checks_ends
    with pytest.raises(RuntimeError):
        policy.ended_at_break()  # the aligned model's turn


MOON = "It is the only satellite of the earth."


def test_a_sentence_that_comes_again_counts_as_uncertain_and_ends_the_third_time():
    policy = Nudging(NudgingConfig())
    play(policy, "Sure.", (f" {MOON}", 0.9))
    assert policy.turn is Turn.BASE
    play(policy, (f" {MOON}", 0.9))
    assert policy.turn is Turn.ALIGNED
    play(policy, " The sun shines by day", (f". {MOON}", 0.9))
    assert policy.turn is Turn.BASE  # another sentence was between them
    play(policy, (f" {MOON}", 0.9))
    assert policy.turn is Turn.ALIGNED
    policy.word(f" {MOON}")
    assert (policy.turn, policy.stop_reason) == (Turn.DONE, "repetition")


def test_while_guards_are_off_a_sentence_may_come_for_ever():
    policy = Nudging(NudgingConfig())
    policy.guarded = False
    policy.word("Sure.")
    for number in range(6):
        if policy.turn is Turn.ALIGNED:
            policy.word(" So")
        policy.base_token(number, 0.9, f" {MOON}")
    assert policy.turn is not Turn.DONE
