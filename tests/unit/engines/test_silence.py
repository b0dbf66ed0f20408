"""When an engine has been silent for too long: every case that may look like it, and isn't."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engines.silence import READING_S, Watch


def looks(watch: Watch, count: int) -> bool:
    """Whether one of so many looks, a second apart, finds it silent for too long."""
    return any([watch.look(1.0) for _ in range(count)])


def test_an_engine_that_answers_wait_for_and_that_writes_nothing_is_dead():
    watch = Watch(10)
    with watch.waits():
        assert not looks(watch, 10)
        assert looks(watch, 1)


def test_one_that_nobody_waits_for_may_be_silent_for_ever():
    """Idle; or its output lies there, and the readers are slow."""
    watch = Watch(10)
    assert not looks(watch, 1000)
    with watch.waits():
        assert not looks(watch, 10)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_whatever_is_heard_begins_the_count_anew(pauses: list[tuple[int, bool]]):
    """For whomever it is: an answer that waits for its turn is no sign."""
    watch = Watch(10)
    with watch.waits():
        for pause, also_waits in pauses:
            assert not looks(watch, pause)
            watch.heard += 1
            watch.waiting += also_waits
            assert not looks(watch, 1)
        assert looks(watch, 11)


def test_a_prompt_takes_its_time_to_read():
    watch, ids = Watch(10), 4000
    watch.reading["one"] = ids
    with watch.waits():
        assert not looks(watch, 10 + int(ids * READING_S))
        assert looks(watch, 1)


def test_many_prompts_take_as_long_as_the_longest():
    """Or a crowd of requests would keep a dead engine from being noticed."""
    watch = Watch(10)
    watch.reading = {number: 100 + number for number in range(100)}
    assert watch.limit_s == 10 + 199 * READING_S
    watch.reading.clear()
    assert watch.limit_s == 10


def test_whoever_waits_no_more_counts_no_more_also_when_it_failed():
    watch = Watch(10)
    try:
        with watch.waits():
            raise ValueError
    except ValueError:
        pass
    assert watch.waiting == 0


@given(st.floats(0.01, 1000))
def test_it_is_looked_at_often_enough(silence_s: float):
    watch = Watch(silence_s)
    assert 0 < watch.look_s <= 1
    with watch.waits():
        count = 0
        while not watch.look(watch.look_s):
            count += 1
        assert silence_s <= (count + 1) * watch.look_s <= 1.3 * silence_s + 1
