"""The served names as Anthropic lists models: for whoever says that it speaks so.

Knows: these objects. Does not know: what else a model's card says (`server.api.status`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from server.api.openapi import sometimes
from server.serving.registry import Registry


class MessagesModel(BaseModel):
    """Anthropic's, without what is known of its own models alone."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"]
    max_input_tokens: int = sometimes("Tokens of prompt and answer, once the engines are loaded.")
    max_tokens: int = sometimes("The same.")


class MessagesModelList(BaseModel):
    data: list[MessagesModel]
    has_more: Literal[False] = Field(description="All are listed at once.")
    first_id: str
    last_id: str


def speaks(headers: Mapping[str, str]) -> bool:
    """Whether a request is of Anthropic's API, where its path doesn't tell."""
    return "anthropic-version" in headers


def card(name: str, registry: Registry) -> dict[str, Any]:
    context = registry.context_length(registry.resolve(name))
    created = datetime.fromtimestamp(registry.created, UTC).isoformat().replace("+00:00", "Z")
    shown = {"type": "model", "id": name, "display_name": name, "created_at": created}
    shown |= {"lifecycle": "active"}
    return shown | ({} if context is None else {"max_input_tokens": context, "max_tokens": context})


def cards(registry: Registry) -> dict[str, Any]:
    data = [card(name, registry) for name in registry.names()]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
    return {"data": data, "has_more": False} | ends
