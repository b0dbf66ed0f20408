"""How schemas are read: exactly, or not at all."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core import Grammar
from server.text.grammar.follow import Follower
from server.text.grammar.schema import MAX_NUMBER, Refused, prepare
from server.text.grammar.vetting import bytes_alone, compact, compile_schema, matches, vet

NUMBERS = st.integers(-20, 20) | st.sampled_from([0.5, -1.25, 2**53, 2**53 + 1, -(2**63), 1e300])
STEPS = st.sampled_from([2, 3, 0.5, 0.1])
SIZES = st.integers(0, 4)
KEYS = st.sampled_from(["a", "b", "s"])
VALUES = st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "x", "é漢"])


def schemas() -> st.SearchStrategy[dict[str, Any]]:
    leaf = st.one_of(
        st.fixed_dictionaries({"const": VALUES}),
        st.fixed_dictionaries({"enum": st.lists(VALUES, min_size=1, max_size=3)}),
        st.fixed_dictionaries(
            {"type": st.sampled_from(["integer", "number"])},
            optional={"minimum": NUMBERS, "exclusiveMaximum": NUMBERS, "multipleOf": STEPS},
        ),
        st.fixed_dictionaries(
            {"type": st.just("string")},
            optional={
                "minLength": SIZES,
                "maxLength": SIZES,
                "pattern": st.sampled_from(["^a+$", "b", "^(x|y){2,3}$"]),
                "format": st.sampled_from(["date", "ipv4", "uuid", "color", "int32"]),
            },
        ),
        st.sampled_from([{"type": "null"}, {"type": ["boolean", "null"]}, {}, {"$ref": "#"}]),
    )
    return st.recursive(leaf, _composed, max_leaves=6)


def _composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(KEYS, inner, max_size=3)},
            optional={
                "required": st.lists(KEYS, unique=True, max_size=2),
                "additionalProperties": st.booleans() | inner,
                "minProperties": SIZES,
                "maxProperties": SIZES,
                "patternProperties": st.dictionaries(st.sampled_from(["^s$", "^p"]), inner),
            },
        ),
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner},
            optional={
                "minItems": SIZES,
                "maxItems": SIZES,
                "uniqueItems": st.booleans(),
                "prefixItems": st.lists(inner, min_size=1, max_size=2),
            },
        ),
        st.dictionaries(
            st.sampled_from(["anyOf", "oneOf", "allOf"]),
            st.lists(inner, min_size=1, max_size=2),
            min_size=1,
            max_size=1,
        ),
    )


def written(grammar: Grammar, draws: random.Random) -> str | None:
    """A text that the grammar allows; None where none came about in some hundred bytes."""
    follower, text = Follower(grammar, bytes_alone()), b""
    closing = [ord(byte) for byte in '"}]']
    for count in range(400):
        mask = follower.allowed_after(text)
        assert mask is not None, text
        allowed = [byte for byte in range(256) if mask[byte // 8] >> (byte % 8) & 1]
        if follower.satisfied and (not allowed or draws.random() < 0.5):
            return text.decode()
        if not allowed:
            return None
        close = [byte for byte in closing if byte in allowed]
        plain = [byte for byte in allowed if byte < 128] or allowed
        text += bytes([close[0] if close and count > 60 else draws.choice(plain)])
    return None


@settings(max_examples=300, deadline=None)
@given(schemas(), st.randoms(use_true_random=False))
def test_what_is_written_is_what_the_schema_allows(schema: dict[str, Any], draws: Any):
    try:
        grammar = vet(json.loads(json.dumps(schema)), "", [])
    except Refused:
        return
    text = written(grammar, draws)
    if text is not None:
        value = json.loads(text, parse_float=_finite)
        read = prepare(json.loads(json.dumps(schema)), lambda name: True)
        assert jsonschema_rs.Draft202012Validator(read).is_valid(value), text
        # A branch that is read as closed excludes what it would not exclude as it is written.
        if "oneOf" not in json.dumps(schema):
            assert jsonschema_rs.Draft202012Validator(schema).is_valid(value), text


def _finite(text: str) -> float:
    """1E310 is a number to JSON, and none to Python."""
    return max(-1e300, min(float(text), 1e300))


def fits(schema: dict[str, Any], text: str) -> bool:
    return matches(compile_schema(schema), text)


def test_objects_are_closed_where_they_name_their_properties():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert fits(schema, '{"a":1}')
    assert not fits(schema, '{"a":1,"b":2}')
    assert fits(schema | {"additionalProperties": True}, '{"a":1,"b":2}')
    assert fits({"type": "object"}, '{"b":2}')
    nested = {"type": "array", "items": schema}
    assert not fits(nested, '[{"b":2}]')
    referred = {"$defs": {"x": schema}, "$ref": "#/$defs/x"}
    assert not fits(referred, '{"a":1,"b":2}')


def test_a_required_property_may_come_where_the_others_are_named():
    schema = {"type": "object", "properties": {"a": {}}, "required": ["a", "b"]}
    assert fits(schema, '{"a":1,"b":[2]}')
    assert not fits(schema, '{"a":1}')


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]},
        {"properties": {"a": {"const": 1}}, "anyOf": [{"properties": {"b": {"const": 2}}}]},
        {
            "$defs": {"x": {"properties": {"a": {"const": 1}}}},
            "allOf": [{"$ref": "#/$defs/x"}, {"properties": {"b": {"const": 2}}}],
        },
    ],
)
def test_schemas_that_describe_one_object_together_are_left_open(schema: dict[str, Any]):
    assert fits({"type": "object", **schema}, '{"a":1,"b":2}')


def test_a_single_reference_is_no_company():
    schema = {
        "$defs": {"x": {"type": "object", "properties": {"a": {"const": 1}}}},
        "allOf": [{"$ref": "#/$defs/x"}],
        "description": "as pydantic 1 writes it",
    }
    assert fits(schema, '{"a":1}')
    assert not fits(schema, '{"a":1,"b":2}')


def test_an_unknown_format_is_an_annotation_and_a_known_one_is_followed():
    assert fits({"type": "string", "format": "color"}, '"x"')
    assert not fits({"type": "string", "format": "date"}, '"x"')


@pytest.mark.parametrize("keyword", ["const", "minimum", "exclusiveMaximum", "multipleOf"])
@pytest.mark.parametrize("number", [MAX_NUMBER + 1, -(2**63), 2**63, 10**40, 1e300, float("inf")])
def test_a_number_that_would_become_another_one_is_refused(keyword: str, number: float):
    with pytest.raises(Refused, match=keyword):
        compile_schema({"type": "array", "items": {keyword: number}})


@pytest.mark.parametrize("value", [[1, [2**53 + 1]], {"a": 2**53 + 1}])
def test_also_inside_a_value(value: Any):
    with pytest.raises(Refused, match="enum"):
        compile_schema({"enum": [0, value]})


def test_numbers_up_to_there_are_written_as_they_are():
    for number in (MAX_NUMBER, -MAX_NUMBER, 0, 0.1, -1.5):
        assert fits({"const": number}, json.dumps(number))


def test_a_key_written_twice_counts_once():
    with pytest.raises(Refused, match="minProperties"):
        compile_schema({"type": "object", "minProperties": 2})
    least = {"type": "object", "required": ["a", "b"], "properties": {"a": {}, "b": {}}}
    assert fits(least | {"minProperties": 2}, '{"a":1,"b":2}')


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {
            "type": "object",
            "required": ["s"],
            "additionalProperties": False,
            "patternProperties": {"^s$": {"const": 1}},
        },
        {"anyOf": []},
        {"type": "integer", "minimum": 5, "maximum": 3},
    ],
)
def test_a_schema_that_leads_nowhere_is_refused(schema: dict[str, Any]):
    with pytest.raises(Refused):
        vet(schema, "", [])


def test_an_object_of_hundreds_of_optional_properties_is_followed():
    properties = {f"p{number}": {"type": "integer"} for number in range(600)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    assert matches(vet(schema, "", []), '{"p3":1,"p599":2}')


# -- begun answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "kept"),
    [
        ("", ""),
        ('{\n  "a b": ', '{"a b":'),
        ('[ 1,\t{"x" : "y z', '[1,{"x":"y z'),
        ('["a\\" , b" , ', '["a\\" , b",'),
        ('["\\', '["\\'),
    ],
)
def test_whitespace_between_tokens_is_no_part_of_what_was_begun(begun: str, kept: str):
    assert compact(begun) == kept


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
    st.sampled_from([None, 1, 4]),
)
def test_what_is_compact_means_the_same(value: Any, indent: int | None):
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    assert json.loads(compact(text)) == json.loads(text)
    assert compact(text) == json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def test_an_answer_goes_on_where_it_was_begun():
    schema = {"type": "object", "properties": {"a": {"enum": ["yes", "no"]}}, "required": ["a"]}
    grammar = vet(schema, '{ "a": "n', [])
    follower = Follower(grammar, bytes_alone())
    follower.go_to(b'o"}')
    assert follower.satisfied
    follower.go_to(b"")
    assert not follower.satisfied
    with pytest.raises(Refused, match="not the beginning"):
        vet(schema, '{"b', [])
