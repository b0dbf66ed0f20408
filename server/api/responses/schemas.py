"""A response and its events, as OpenAPI describes them.

Knows: their shape, with what is ours in them. Does not know: how they are made
(`server.api.responses.reply`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.api.extension import NudgingUsage, RejectedToken, Trace
from server.api.openai.schemas import TokenLogprob
from server.api.openapi import sometimes
from server.core import StopReason

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class CachedTokens(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class ReasoningTokens(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int
    nudging: NudgingUsage = sometimes("Where both models took part.")


class OutputPart(BaseModel):
    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[Any] = sometimes("Of an `output_text`: none.")
    logprobs: list[TokenLogprob] = sometimes("Of an `output_text`: where they were asked for.")


class OutputItem(BaseModel):
    """A `message`, a `reasoning` or a `function_call`."""

    id: str
    type: Literal["message", "reasoning", "function_call"]
    status: Status
    role: Literal["assistant"] = sometimes("Of a message.")
    content: list[OutputPart] = sometimes("Of a message, and of reasoning.")
    summary: list[Any] = sometimes("Of reasoning: none.")
    call_id: str = sometimes("Of a call.")
    name: str = sometimes("Of a call.")
    arguments: str = sometimes("Of a call: JSON.")
    nudging: Trace = sometimes("Where the request asked for it: its pieces.")


class ResponseOutcome(BaseModel):
    """Of a trace what is of the whole answer."""

    stop_reason: StopReason
    rounds: int
    rejected: RejectedToken = sometimes(
        "What the base model would have written where it gave way and the answer ended."
    )


class ResponseFailure(BaseModel):
    code: str
    message: str


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class ResponseObject(BaseModel):
    """OpenAI's response, with what the request asked for."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int = sometimes("Where it is completed.")
    status: Status
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    store: bool = Field(description="Whether it is kept.")
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    nudging: ResponseOutcome = sometimes("Where the request asked for a trace.")


class ResponseEvent(BaseModel):
    """One of OpenAI's; those that build an item say which and where."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    ]
    sequence_number: int
    response: ResponseObject = sometimes()
    output_index: int = sometimes()
    item: OutputItem = sometimes()
    item_id: str = sometimes()
    content_index: int = sometimes()
    part: OutputPart = sometimes()
    delta: str = sometimes()
    text: str = sometimes()
    logprobs: list[TokenLogprob] = sometimes()
    name: str = sometimes()
    arguments: str = sometimes()
    nudging: Trace = sometimes("Where the request asked for it: the delta's pieces.")


# -- what was kept --------------------------------------------------------------------------------


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
