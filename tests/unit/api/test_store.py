"""What is kept for a key is nobody else's, and no more is kept than may be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.store import Store


def test_what_one_owner_has_no_other_one_reaches():
    store: Store[str] = Store(10, 1000)
    ours, theirs, all_others = store.of("a"), store.of("b"), store.of(None)
    ours.put("x", "mine", 1)
    assert theirs.get("x") is None
    assert all_others.get("x") is None
    assert not theirs.drop("x")
    theirs.put("x", "theirs", 1)
    assert ours.get("x") == "mine"
    assert ours.drop("x")
    assert ours.get("x") is None
    assert theirs.get("x") == "theirs"


def test_what_nobody_asked_for_the_longest_makes_room():
    shelf = Store[int](2, 1000).of(None)
    shelf.put("a", 1, 1)
    shelf.put("b", 2, 1)
    assert shelf.get("a") == 1
    shelf.put("c", 3, 1)
    assert shelf.get("b") is None
    assert shelf.get("a") == 1
    assert shelf.get("c") == 3


def test_a_store_of_nothing_holds_nothing():
    shelf = Store[int](0, 1000).of(None)
    assert not shelf.holds
    shelf.put("a", 1, 1)
    assert shelf.get("a") is None
    assert Store[int](1, 1000).of(None).holds


def test_what_is_too_large_drives_nothing_out():
    shelf = Store[int](10, 100).of(None)
    shelf.put("a", 1, 60)
    shelf.put("b", 2, 101)
    assert shelf.get("a") == 1
    assert shelf.get("b") is None


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "get", "drop"]),
            st.sampled_from(["a", "b", None]),
            st.sampled_from("xyz"),
            st.integers(0, 40),
        ),
        max_size=40,
    )
)
def test_there_are_never_more_values_or_bytes_than_may_be(
    steps: list[tuple[str, str | None, str, int]],
):
    store: Store[tuple[str | None, str, int]] = Store(3, 60)
    last: dict[tuple[str | None, str], int] = {}
    for what, owner, name, size in steps:
        shelf = store.of(owner)
        if what == "put":
            shelf.put(name, (owner, name, size), size)
            last[owner, name] = size
        elif what == "drop":
            shelf.drop(name)
            last.pop((owner, name), None)
        found = {key: store.get(key) for key in last}
        there = {key: value for key, value in found.items() if value is not None}
        assert len(there) <= 3
        assert sum(size for _, _, size in there.values()) <= 60
        for (of, called), value in there.items():
            assert value == (of, called, last[of, called])
