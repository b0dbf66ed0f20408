"""OpenAI's answers, as OpenAPI describes them.

Knows: their shape, with what is ours in them. Does not know: how they are made
(`server.api.openai.render`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from server.api.extension import NudgingUsage, Trace
from server.api.openapi import sometimes
from server.core import FinishReason


class CompletionDetails(BaseModel):
    reasoning_tokens: int


class PromptDetails(BaseModel):
    cached_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails = sometimes("Not in traces of older servers.")
    completion_tokens_details: CompletionDetails = sometimes("Where a model has thought.")
    nudging: NudgingUsage = sometimes("Where both models took part.")


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class FunctionCalled(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCalled


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: str = sometimes("What a model thought before it answered.")
    reasoning_content: str = sometimes("The same, by its older name.")
    tool_calls: list[ToolCall] = sometimes("What it calls.")
    function_call: FunctionCalled = sometimes("The same, where the request has `functions`.")


class _Envelope(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str


ChatFinishReason = FinishReason | Literal["function_call"]


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    nudging: Trace = sometimes("Where the request asked for it.")


class ChatCompletion(_Envelope):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class FunctionDelta(BaseModel):
    name: str = sometimes()
    arguments: str


class ToolCallDelta(BaseModel):
    index: int
    id: str = sometimes("In a call's first delta, as are its type and its name.")
    type: Literal["function"] = sometimes()
    function: FunctionDelta


class Delta(BaseModel):
    role: Literal["assistant"] = sometimes()
    content: str = sometimes()
    reasoning: str = sometimes("More of what a model thinks before it answers.")
    reasoning_content: str = sometimes("The same, by its older name.")
    tool_calls: list[ToolCallDelta] = sometimes("More of a call.")
    function_call: FunctionDelta = sometimes("The same, where the request has `functions`.")


class ChatChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason | None
    nudging: Trace = sometimes("Where the request asked for it.")


class ChatCompletionChunk(_Envelope):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(default_factory=lambda: None)


class CompletionLogprobs(BaseModel):
    """With ``echo`` of the prompt's tokens too, of which the first has null."""

    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class _CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    nudging: Trace = sometimes("Where the request asked for it.")


class CompletionChoice(_CompletionChoice):
    finish_reason: FinishReason


class Completion(_Envelope):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(_CompletionChoice):
    finish_reason: FinishReason | None


class CompletionChunk(_Envelope):
    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | None = Field(default_factory=lambda: None)
