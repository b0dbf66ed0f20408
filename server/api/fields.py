"""What the fields of requests have in common: their types, and how one is refused.

Knows: JSON's types as strict ones, limits that hold for every body, and refusals that name a field.
Does not know: which fields there are.

A body is a stranger's, and what is checked here is checked on the event loop: a list is looked at
as a whole where that is faster than item by item, and never further than to its first wrong item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

MAX_ITEMS = 16_384
"""Messages, their parts, biases: in one list."""

TOKEN_IDS = range(2**31)

Item = TypeVar("Item")
Neutral = Callable[[Any], bool]
"""Says of a field's value whether it asks for nothing."""


class Strict(BaseModel):
    """A body, or a part of one. Types are strict: "0.5" is no number."""

    # Unknown fields are ignored, as OpenAI-compatible servers do: UIs send their own.
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


def refused(param: str, message: str) -> PydanticCustomError:
    """A refusal that names its field, also where pydantic reports a whole model."""
    return PydanticCustomError("refused", "{message}", {"param": param, "message": message})


def empty(value: Any) -> bool:
    return value in (None, [], {}, "", False)


def kind_of(data: Any) -> str | None:
    """What an object's ``type`` is, of JSON or as a model."""
    kind = data.get("type") if isinstance(data, dict) else getattr(data, "type", None)
    return kind if isinstance(kind, str) else None


def only(*neutral: Any) -> Neutral:
    return lambda value: value is None or value in neutral


def refuse(data: Any, neutral: Mapping[str, Neutral], why: str = "is not supported") -> Any:
    """The data of a model, as it is. Raises `refused` for a field that asks for something."""
    if isinstance(data, dict):
        for name, asks_nothing in neutral.items():
            if name in data and not asks_nothing(data[name]):
                raise refused(name, f"{name!r} {why}")
    return data


# -- types ----------------------------------------------------------------------------------------


def described(**schema: Any) -> Any:
    """What a validator holds a field to, for OpenAPI. The type itself doesn't say it, because an
    error would then name an alternative of a union rather than the field."""
    return Field(json_schema_extra=schema)


def _whole(value: Any) -> Any:
    """JSON has one kind of number, and some clients write each with a point: 20.0 is a 20."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def token_ids(value: list[Any], field: str) -> list[int]:
    """A list of token ids. Raises `refused` for its first item that is none."""
    kinds = set(map(type, value))
    if float in kinds:
        value = [_whole(each) for each in value]
        kinds = set(map(type, value))
    if kinds == {int} and min(value) >= TOKEN_IDS.start and max(value) < TOKEN_IDS.stop:
        return value
    for number, each in enumerate(value):
        if type(each) is not int or each not in TOKEN_IDS:
            where = f"{field}.{number}"
            raise refused(where, f"{where}: a token id is a whole number from 0 to 2^31 - 1")
    return value


def _token_ids(value: list[Any], info: ValidationInfo) -> list[int]:
    return token_ids(value, info.field_name or "")


SESSION = re.compile(r"[!-~]{1,256}")
"""What a client may call a session: it goes into headers of requests to engines elsewhere."""
SessionName = Annotated[str, Field(pattern=f"^{SESSION.pattern}$")]
ModelName = Annotated[str, Field(min_length=1)]
WHOLE = BeforeValidator(_whole)
Whole = Annotated[int, WHOLE]
Some = Annotated[list[Item], Field(max_length=MAX_ITEMS, fail_fast=True)]
"""A list that is not endless."""

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

TOKEN_ID_SCHEMA: dict[str, Any] = {
    "type": "integer",
    "minimum": TOKEN_IDS.start,
    "exclusiveMaximum": TOKEN_IDS.stop,
}
TokenIdList = Annotated[
    list[Any],
    AfterValidator(_token_ids),
    WithJsonSchema({"type": "array", "items": TOKEN_ID_SCHEMA}),
]


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("NaN and Infinity are no JSON") from None
    return value


Echoed = Annotated[dict[str, Any], AfterValidator(_plain)]
"""An object that the answer repeats."""
