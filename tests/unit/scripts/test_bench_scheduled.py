"""Forward passes by a schedule: its laws."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmark.scheduled import passes, rows

SPANS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), max_size=8)
DRAFTED = st.integers(1, 8)


@given(spans=SPANS, drafted=DRAFTED, agreement=st.floats(0, 1), seed=st.integers(0, 99))
def test_no_pass_is_in_vain_and_none_adds_more_than_it_has_rows(spans, drafted, agreement, seed):
    tokens = sum(map(sum, spans))
    found = passes(spans, drafted, agreement, random.Random(seed))
    assert -(-tokens // (drafted + 1)) <= found <= tokens


@given(words=st.integers(0, 60), drafted=DRAFTED)
def test_what_stands_is_what_was_drafted_or_agreed_to(words, drafted):
    always, never = 1.0, 0.0
    draws = random.Random(1)
    assert passes([(0, words)], drafted, always, draws) == -(-words // (drafted + 1))
    assert passes([(0, words)], drafted, never, draws) == words
    assert passes([(words, 0)], drafted, never, draws) == -(-words // drafted)


def test_the_table_has_a_row_for_each_and_more_agreement_takes_fewer_passes():
    lines = rows((1, 4), 8)
    assert len(lines) == 6
    taken = [float(line.split("|")[4]) for line in lines]
    assert taken[1::2] == sorted(taken[1::2], reverse=True)
    assert all(few < many for many, few in zip(taken[::2], taken[1::2], strict=True))
