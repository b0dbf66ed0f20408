"""``text``: what an answer is to look like.

Knows: its forms, and the JSON schema that each asks for. Does not know: how an answer is made to
follow one (`server.text.grammar`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag

from server.api.fields import Echoed, Strict, kind_of
from server.api.openai.formats import JsonObjectFormat, NamedSchema, TextFormat, schema_asked


class FlatObject(JsonObjectFormat):
    schema_: Annotated[Echoed | None, Field(alias="schema")] = None


class FlatSchema(NamedSchema):
    type: Literal["json_schema"]
    schema_: Annotated[Echoed, Field(alias="schema")]


def _form(data: Any) -> str:
    tags = {"json_schema": "[schema]", "json_object": "[object]"}
    return tags.get(kind_of(data) or "", "[text]")


# The brackets: no part of the path that an error names.
Format: TypeAlias = Annotated[
    Annotated[TextFormat, Tag("[text]")]
    | Annotated[FlatObject, Tag("[object]")]
    | Annotated[FlatSchema, Tag("[schema]")],
    Discriminator(_form),
]


class TextOptions(Strict):
    format: Format | None = None
    verbosity: Literal["medium"] | None = None

    @property
    def schema_asked(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must match."""
        match self.format:
            case FlatSchema(schema_=schema):
                return schema
            case form:
                return schema_asked(form)
