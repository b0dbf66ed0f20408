"""A whole distribution is the same sequence as its tokens sorted in Python, and arrays besides."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.decoding.mixtures import log_probs
from server.engines.base import Distribution, Token

values = st.lists(st.sampled_from([-0.1, -0.5, -1.0, -2.5, -7.0, -np.inf]), min_size=1, max_size=40)


def of(found: list[float]) -> tuple[Distribution, list[tuple[int, float]]]:
    """With ids in some order, and the same sorted by hand; of equals the first comes first."""
    ids = [(7 * at + 3) % 41 for at in range(len(found))]
    by_hand = sorted(zip(ids, found, strict=True), key=lambda each: -each[1])
    return Distribution(np.array(ids, np.int64), np.array(found)), by_hand


@given(values, st.integers(-40, 40), st.integers(0, 40))
def test_it_is_the_sequence_of_its_tokens_best_first(found: list[float], start: int, stop: int):
    whole, by_hand = of(found)
    assert whole[0] == by_hand[0]  # without sorting
    assert len(whole) == len(by_hand)
    assert list(whole) == by_hand
    assert [whole[at] for at in range(len(whole))] == by_hand
    assert whole[-1] == by_hand[-1]
    assert list(whole[start:stop]) == by_hand[start:stop]
    assert all(isinstance(i, int) and isinstance(p, float) for i, p in whole)


@given(values)
def test_a_mixture_gets_from_it_what_it_gets_from_tuples(found: list[float]):
    whole, by_hand = of(found)
    one, other = Token(3, found[0], whole), Token(3, found[0], tuple(by_hand))
    for size in (10, 41, 60):  # ids beyond the vocabulary are left out
        assert (log_probs(one, size) == log_probs(other, size)).all()
    assert one.top_prob == other.top_prob
