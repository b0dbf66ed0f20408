"""OpenAI's fields that need more than a type: their limits.

Knows: the values of single fields. Does not know: which request has which.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema

from server.api.fields import MAX_ITEMS, TOKEN_ID_SCHEMA, described, refused, token_ids

MAX_TOP_LOGPROBS = 20

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]

Text = Annotated[str, described(minLength=1)]


def _biases(value: dict[str, Any]) -> dict[str, float]:
    if len(value) > MAX_ITEMS:
        raise refused("logit_bias", f"logit_bias: more than {MAX_ITEMS} tokens")
    for token, bias in value.items():
        where = f"logit_bias.{token[:60]}"
        if not re.fullmatch("[0-9]{1,9}", token):
            raise refused(where, f"{where}: a token id is a whole number")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise refused(where, f"{where}: a bias is a number from -100 to 100")
    return value


# Not by pydantic's own types, which would note each of a million wrong items before they say so.
Biases = Annotated[
    dict[str, Any],
    AfterValidator(_biases),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {
                "^[0-9]{1,9}$": {"type": "number", "minimum": -100, "maximum": 100}
            },
            "additionalProperties": False,
        }
    ),
]


def _prompt(value: Any) -> str | list[Any]:
    """A text, token ids, or a list of either."""
    if not isinstance(value, str | list):
        raise refused("prompt", "prompt: a text, token ids, or a list of either")
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    if not value or (kinds == {str} and "" in value) or (kinds == {list} and [] in value):
        raise refused("prompt", "prompt: must not be empty")
    if isinstance(value, str) or kinds == {str}:
        return value
    if kinds == {list}:
        return [token_ids(ids, f"prompt.{number}") for number, ids in enumerate(value)]
    return token_ids(value, "prompt")


_TOKEN_IDS = {"type": "array", "minItems": 1, "items": TOKEN_ID_SCHEMA}
_TEXT = {"type": "string", "minLength": 1}
Prompt = Annotated[
    Any,
    AfterValidator(_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                _TOKEN_IDS,
                {"type": "array", "minItems": 1, "items": _TEXT},
                {"type": "array", "minItems": 1, "items": _TOKEN_IDS},
            ]
        }
    ),
]
