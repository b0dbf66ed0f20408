"""Anthropic's answers, as OpenAPI describes them.

Knows: their shape, with what is ours in them. Does not know: how they are made
(`server.api.anthropic.render`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, RootModel

from server.api.extension import NudgingUsage, Trace
from server.api.openapi import sometimes

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class MessageText(BaseModel):
    type: Literal["text"]
    text: str


class MessageThinking(BaseModel):
    type: Literal["thinking"]
    thinking: str
    signature: str


class MessageToolUse(BaseModel):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


MessageBlock = MessageText | MessageThinking | MessageToolUse


class MessageOutputDetails(BaseModel):
    thinking_tokens: int


class MessageUsage(BaseModel):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: MessageOutputDetails = sometimes("At the end.")
    nudging: NudgingUsage = sometimes("At the end, where both models took part.")


class MessageAnswer(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    nudging: Trace = sometimes("Where the request asked for it.")


class MessageStart(BaseModel):
    type: Literal["message_start"]
    message: MessageAnswer


class ContentBlockStart(BaseModel):
    type: Literal["content_block_start"]
    index: int
    content_block: MessageBlock


class BlockTextDelta(BaseModel):
    type: Literal["text_delta"]
    text: str


class BlockThinkingDelta(BaseModel):
    type: Literal["thinking_delta"]
    thinking: str


class BlockSignatureDelta(BaseModel):
    type: Literal["signature_delta"]
    signature: str


class BlockInputDelta(BaseModel):
    type: Literal["input_json_delta"]
    partial_json: str


class ContentBlockDelta(BaseModel):
    type: Literal["content_block_delta"]
    index: int
    delta: BlockTextDelta | BlockThinkingDelta | BlockSignatureDelta | BlockInputDelta
    nudging: Trace = sometimes("Where the request asked for it.")


class ContentBlockStop(BaseModel):
    type: Literal["content_block_stop"]
    index: int


class MessageEnd(BaseModel):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(BaseModel):
    type: Literal["message_delta"]
    delta: MessageEnd
    usage: MessageUsage
    nudging: Trace = sometimes("Where the request asked for it.")


class MessageStop(BaseModel):
    type: Literal["message_stop"]


class MessageEvent(
    RootModel[
        MessageStart
        | ContentBlockStart
        | ContentBlockDelta
        | ContentBlockStop
        | MessageDelta
        | MessageStop
    ]
):
    """One event of a stream, under its type's name."""


class CountedTokens(BaseModel):
    input_tokens: int
