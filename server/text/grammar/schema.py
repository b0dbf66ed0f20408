"""How a JSON schema is read, before llguidance makes a grammar of it.

Knows: JSON Schema's keywords, and where llguidance would follow one in another sense than whoever
wrote it meant. Does not know: llguidance, processes, HTTP. What can't be followed exactly is
refused; nothing is followed half-way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

Schema: TypeAlias = dict[str, Any]

MAX_NUMBER = 2**53
"""llguidance reads numbers as IEEE doubles: beyond this a whole number may become another one."""

_ONE = ("additionalProperties", "items", "additionalItems", "contains", "not", "if", "then", "else")
_EACH_OF = ("prefixItems", "items", "allOf", "anyOf", "oneOf")
_EACH_VALUE = ("properties", "patternProperties", "dependentSchemas")
_PARTS = ("allOf", "anyOf", "oneOf", "$ref")
"""Keywords that put a schema together from others."""
_NUMBERS = (
    *("const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
_NEUTRAL = {"uniqueItems": False, "unevaluatedProperties": True, "unevaluatedItems": True}
"""Keywords that llguidance doesn't know, with the value that asks for nothing."""


class Refused(Exception):
    """The message says which keyword can't be followed, and why."""


def prepare(root: Schema, knows_format: Callable[[str], bool]) -> Schema:
    """The schema as llguidance is to read it. Changes ``root``.

    - An object with ``properties`` that says nothing of others has no others, as vLLM and
      llama.cpp read it; not where several schemas describe one object together.
    - A ``format`` that isn't known is an annotation (JSON Schema 2020-12, section 7.2.1).

    Args:
        knows_format: whether llguidance can follow a format.

    Raises:
        Refused: a keyword can't be followed exactly.
    """
    reached: dict[int, Schema] = {}
    merged: set[int] = set()
    waiting: list[tuple[Any, bool]] = [(root, False)]
    while waiting:
        schema, part = waiting.pop()
        if not isinstance(schema, dict):
            continue
        number = id(schema)
        if number in reached and (number in merged or not part):
            continue
        reached[number] = schema
        if part:
            merged.add(number)
        waiting += _below(root, schema, part)
    for number, schema in reached.items():
        _check_numbers(schema)
        _read_format(schema, knows_format)
        for keyword, neutral in _NEUTRAL.items():
            if schema.get(keyword) is neutral:
                del schema[keyword]
        if number not in merged and "properties" in schema and not schema.keys() & {*_PARTS}:
            others = ("patternProperties", "unevaluatedProperties", "additionalProperties")
            if not schema.keys() & {*others}:
                _close(schema)
        _check_least(schema)
    return root


def _close(schema: Schema) -> None:
    """Only the properties that are named, be it as required ones."""
    properties, required = schema["properties"], schema.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        schema["properties"] = properties | {
            name: {} for name in required if isinstance(name, str) and name not in properties
        }
    schema["additionalProperties"] = False


def _below(root: Schema, schema: Schema, part: bool) -> Iterator[tuple[Any, bool]]:
    """The schemas in one, each with whether it is one of several that describe the same value."""
    parts = [keyword for keyword in _PARTS if keyword in schema]
    branches = len(schema["allOf"]) if isinstance(schema.get("allOf"), list) else 1
    own = {"properties", "required", "patternProperties", "additionalProperties"}
    several = part or len(parts) > 1 or branches > 1 or bool(parts and schema.keys() & own)
    for keyword in _ONE:
        if isinstance(schema.get(keyword), dict):
            yield schema[keyword], False
    for keyword in _EACH_VALUE:
        if isinstance(schema.get(keyword), dict):
            yield from ((each, False) for each in schema[keyword].values())
    for keyword in _EACH_OF:
        if isinstance(schema.get(keyword), list):
            yield from ((each, several and keyword in _PARTS) for each in schema[keyword])
    if isinstance(schema.get("$ref"), str):
        yield _target(root, schema["$ref"]), several


def _target(root: Schema, reference: str) -> Any:
    """What a reference inside the document points to; None where that isn't known."""
    if not reference.startswith("#"):
        return None
    node: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict):
            node = node.get(key)
        else:
            return None
    return node


def _check_numbers(schema: Schema) -> None:
    for keyword in _NUMBERS:
        waiting = [schema.get(keyword)]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
            elif isinstance(value, int | float) and not isinstance(value, bool):
                if not math.isfinite(value):
                    raise Refused(f"{keyword!r}: JSON has no such number")
                if abs(value) > MAX_NUMBER:
                    raise Refused(f"{keyword!r}: only numbers up to 2^53 can be followed exactly")


def _read_format(schema: Schema, knows_format: Callable[[str], bool]) -> None:
    name = schema.get("format")
    if isinstance(name, str) and not knows_format(name):
        del schema["format"]


def _check_least(schema: Schema) -> None:
    """A grammar can't keep a model from writing a key twice, which would count once."""
    least, required = schema.get("minProperties"), schema.get("required")
    if not isinstance(least, int | float):
        return
    named = len({*map(str, required)}) if isinstance(required, list) else 0
    others = schema.get("additionalProperties") is not False or "patternProperties" in schema
    if least > named and others:
        raise Refused(
            "'minProperties' can't be followed where any property may be added, beyond those that "
            "are 'required'"
        )
