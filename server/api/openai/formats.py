"""``response_format``: what an answer is to look like.

Knows: its forms, OpenAI's and those of others, and the JSON schema that each asks for. Does not
know: how an answer is made to follow one (`server.text.grammar`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.api.fields import Strict, refused


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
