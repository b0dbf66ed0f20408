"""Answers that must match a grammar, token by token and in any vocabulary."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.grammar.follow import Follower, Vocabulary, closes
from server.text.grammar.schema import Refused
from server.text.grammar.vetting import compile_schema, matches, vet
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "ages": {"type": "array"}},
    "required": ["name"],
    "additionalProperties": False,
}
TEXT = st.text(st.characters(exclude_characters="\x7f", codec="utf-8"))  # DEL: never written raw
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=8,
)


@cache
def tokenizer(folder: str) -> Tokenizer:
    return Tokenizer.load(str(DEMO / folder))


def vocabulary(folder: str) -> Vocabulary:
    own = tokenizer(folder)
    return Vocabulary(own.table, own.encode_text, own.size, (own.chat.eos_token_id,))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXT, JSON), st.booleans())
def test_every_object_on_one_line_is_json_object(value: Any, spaced: bool):
    separators = (", ", ": ") if spaced else (",", ":")
    text = json.dumps(value, separators=separators, ensure_ascii=False)
    assert matches(compile_schema({"type": "object"}), text)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"name": "x"}', True),
        ('{"name":"x","ages":[1, 2]}', True),
        ('{"name": "x", "ages": []}', True),
        ("", False),
        ("{", False),
        ("{}", False),
        ('{"name": 1}', False),
        ('{"ages": [], "name": "x"}', False),
        ('{"name": "x", "more": 1}', False),
        ('{"name": "x"} ', False),
        (' {"name": "x"}', False),
        ('{"name": "x",\n"ages": []}', False),
        ('{"name": "x"}{"name": "x"}', False),
        ("null", False),
    ],
)
def test_a_schema_says_what_fits(text: str, fits: bool):
    assert matches(compile_schema(SCHEMA), text) is fits


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries({"name": TEXT}, optional={"ages": st.lists(JSON)}),
    st.sampled_from(["base", "aligned", "aligned-1k"]),
    st.randoms(),
)
def test_it_is_followed_in_any_vocabulary_and_back_again(value: Any, folder: str, draws: Any):
    """Wherever it was before, its state is that of the text that is there now."""
    in_order = {name: value[name] for name in ("name", "ages") if name in value}
    text = json.dumps(in_order, ensure_ascii=False)
    ids = tokenizer(folder).encode_text(text)
    words = vocabulary(folder)
    follower = Follower(compile_schema(SCHEMA), words)
    for _ in range(6):
        length = draws.randint(0, len(ids))
        fresh = Follower(compile_schema(SCHEMA), words)
        assert follower.allowed_after(ids[:length]) == fresh.allowed_after(ids[:length])
        assert follower.satisfied == fresh.satisfied
    follower.go_to(ids)
    assert follower.satisfied


def test_only_the_end_is_allowed_once_it_is_complete():
    words = vocabulary("aligned")
    end = tokenizer("aligned").chat.eos_token_id
    follower = Follower(compile_schema(SCHEMA), words)
    for text, ending in (('{"name": "x"', False), ('{"name": "x"}', True)):
        mask = follower.allowed_after(tokenizer("aligned").encode_text(text))
        assert mask is not None
        allowed = [i for i in range(8 * len(mask)) if mask[i // 8] >> (i % 8) & 1]
        assert (end in allowed) is ending
        assert (allowed == [end]) is ending


def test_it_is_lost_after_text_that_it_does_not_allow():
    follower = Follower(compile_schema(SCHEMA), vocabulary("base"))
    assert follower.allowed_after(tokenizer("base").encode_text('{"nope')) is None
    assert follower.lost
    assert follower.allowed_after(tokenizer("base").encode_text('{"na')) is not None
    assert not follower.lost


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "banana"},
        {"minLength": -1},
        {"not": {}},
        {"if": {}, "then": {}},
        {"type": "array", "uniqueItems": True},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:9/x.json"},
        {"type": "string", "pattern": "(?<=a)b"},
    ],
)
def test_what_cant_be_followed_exactly_is_refused(schema: dict[str, Any]):
    with pytest.raises(Refused) as caught:
        vet(schema, "", [])
    assert 5 < len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("token", "closing"),
    [(b'"', True), (b'"}', True), (b"]}", True), (b"", False), (b'" ', False), (b'a"', False)],
)
def test_closing_tokens_only_close(token: bytes, closing: bool):
    assert closes(token) is closing
