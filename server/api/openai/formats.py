"""``response_format`` and ``structured_outputs``: what an answer is to look like.

Knows: their forms, OpenAI's, vLLM's and those of others, and what each asks for. Does not know: how
an answer is made to follow one (`server.text.grammar`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.api.ask import Form
from server.api.fields import Neutral, Some, Strict, empty, refuse, refused


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    """``schema``: as llama.cpp's server and Together take it."""

    type: Literal["json_object"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class NamedSchema(Strict):
    """``strict`` is accepted either way: the answer follows the schema in any case."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """OpenAI's, or with the bare ``schema``, as llama.cpp's server takes it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _one_schema(self) -> JsonSchemaFormat:
        if (self.json_schema is None) == (self.schema_ is None):
            raise refused(
                "response_format.json_schema", "response_format.json_schema: one schema is needed"
            )
        return self

    @property
    def asked(self) -> dict[str, Any]:
        return (self.schema_ or {}) if self.json_schema is None else self.json_schema.schema_


# How its answer is made to follow one is this server's affair.
_NOT_SERVED: dict[str, Neutral] = {
    "structural_tag": empty,
    "whitespace_pattern": empty,
    "disable_fallback": empty,
    "disable_any_whitespace": empty,
    "disable_additional_properties": empty,
}


class StructuredOutputs(Strict):
    """vLLM's: one of these. ``grammar`` is Lark's, as llguidance reads it."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    regex: Annotated[str, Field(min_length=1)] | None = None
    choice: Annotated[Some[Annotated[str, Field(min_length=1)]], Field(min_length=1)] | None = None
    grammar: Annotated[str, Field(min_length=1)] | None = None
    json_object: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_served(cls, data: Any) -> Any:
        return refuse(data, _NOT_SERVED, "is not supported in 'structured_outputs'")

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        given = (self.json_, self.regex, self.choice, self.grammar, self.json_object or None)
        if sum(each is not None for each in given) != 1:
            raise refused(
                "structured_outputs",
                "structured_outputs: one of 'json', 'regex', 'choice', 'grammar' and 'json_object' "
                "is needed",
            )
        if isinstance(self.json_, str) and self._read(self.json_) is None:
            raise refused(
                "structured_outputs.json", "structured_outputs.json: this text is no JSON object"
            )
        return self

    @staticmethod
    def _read(text: str) -> dict[str, Any] | None:
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return schema if isinstance(schema, dict) else None

    @property
    def schema_asked(self) -> dict[str, Any] | None:
        if self.json_object:
            return {"type": "object"}
        return self._read(self.json_) if isinstance(self.json_, str) else self.json_

    @property
    def form_asked(self) -> Form | None:
        if self.regex is not None:
            return Form("regex", self.regex)
        if self.choice is not None:
            return Form("lark", "start: " + " | ".join(map(json.dumps, self.choice)))
        return None if self.grammar is None else Form("lark", self.grammar)


Format = TextFormat | JsonObjectFormat | JsonSchemaFormat


def schema_asked(form: Format | None) -> dict[str, Any] | None:
    """The JSON schema that the answer must match."""
    match form:
        case JsonObjectFormat(schema_=schema):
            return {"type": "object"} if schema is None else schema
        case JsonSchemaFormat():
            return form.asked
        case _:
            return None
