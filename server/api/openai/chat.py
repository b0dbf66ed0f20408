"""Chat completions: the request, its answers, and the two as a dialect.

Knows: what of it is of chat completions alone. Does not know: how an answer is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from server.api.ask import Ask
from server.api.dialect import Reply, Written
from server.api.fields import Whole, empty, only, refuse, refused
from server.api.openai.fields import MAX_TOP_LOGPROBS
from server.api.openai.messages import Conversation
from server.api.openai.render import Json, OpenAI, Renderer, described, spelled
from server.api.openai.requests import Generation
from server.api.openai.schemas import ChatCompletion, ChatCompletionChunk
from server.api.store import Shelf
from server.core import Finished, ScoredToken, Usage
from server.decoding.parsing import (
    CallArguments,
    CallBegins,
    Content,
    Part,
    Reasoning,
    calls_of,
)


class ChatRequest(Conversation, Generation):
    """``POST /v1/chat/completions``"""

    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include_reasoning: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_for_chat(cls, data: Any) -> Any:
        neutral = {"echo": empty, "add_special_tokens": only(False)}
        return refuse(data, neutral, "is not supported for chats")

    @model_validator(mode="after")
    def _logprobs_asked(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "'top_logprobs' needs 'logprobs': true")
        return self

    def _max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def ask(self) -> Ask:
        return self.ask_of(self.chat())


class ChatRenderer(Renderer):
    """``chat.completion`` and ``chat.completion.chunk``"""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self, *args: Any, legacy: bool = False, reasoning: bool = True, **more: Any
    ) -> None:
        """
        Args:
            legacy: whether a call is shown in its older shape.
            reasoning: whether thoughts are shown.
        """
        super().__init__(*args, **more)
        self._legacy = legacy
        self._reasoning = reasoning

    @classmethod
    def options(cls, request: ChatRequest) -> Json:
        shown = request.include_reasoning is not False
        return super().options(request) | {"legacy": request.legacy, "reasoning": shown}

    def first_chunks(self, index: int, echo: str, usage: Usage | None) -> Iterator[Json]:
        yield self._chunk([self._delta(index, {"role": "assistant", "content": ""}, ())], usage)

    def _delta(self, index: int, delta: Json, scored: Sequence[ScoredToken]) -> Json:
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(scored) if scored else None,
            "finish_reason": None,
        }

    def _shown(self, part: Part) -> Json | None:
        match part:
            case Content():
                return super()._shown(part)
            case Reasoning(piece):
                thought = {"reasoning": piece.text, "reasoning_content": piece.text}
                return thought if self._reasoning and piece.text else None
            case CallBegins():
                return called(part, legacy=self._legacy)
            case CallArguments(number, piece) if self._legacy:
                return {"function_call": {"arguments": piece.text}}
            case CallArguments(number, piece):
                more = {"index": number, "function": {"arguments": piece.text}}
                return {"tool_calls": [more]}

    def _reported(self, parts: Iterable[Part]) -> list[ScoredToken]:
        """Those of what is said."""
        return super()._reported(part for part in parts if isinstance(part, Content))

    def _traced(self, parts: Iterable[Part]) -> list[Json]:
        hidden = () if self._reasoning else (Reasoning,)
        return super()._traced(part for part in parts if not isinstance(part, hidden))

    def _ended(self, finished: Finished) -> str:
        reason = finished.finish_reason
        return "function_call" if self._legacy and reason == "tool_calls" else reason

    def _choice(self, index: int, answer: Written, scored: Sequence[ScoredToken]) -> Json:
        return {
            "index": index,
            "message": message(answer.parts, legacy=self._legacy, reasoning=self._reasoning),
            "logprobs": None if self.top is None else self._logprobs(scored),
            "finish_reason": None,
        }

    def _logprobs(self, scored: Iterable[ScoredToken]) -> Json:
        return {
            "content": [token_logprob(token, self.top) for token in scored],
            "refusal": None,
        }


def message(parts: Sequence[Part], *, legacy: bool, reasoning: bool) -> Json:
    """What an assistant said: its text, its thoughts, its calls."""
    said = "".join(part.piece.text for part in parts if isinstance(part, Content))
    thought = "".join(part.piece.text for part in parts if isinstance(part, Reasoning))
    calls = calls_of(parts)
    shown: Json = {"role": "assistant", "content": None if calls and not said else said}
    shown["refusal"] = None
    if thought and reasoning:
        shown |= {"reasoning": thought, "reasoning_content": thought}
    if calls and legacy:
        shown["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
    elif calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    return shown


def called(begins: CallBegins, *, legacy: bool) -> Json:
    """How a stream says that a call begins."""
    function = {"name": begins.name, "arguments": ""}
    if legacy:
        return {"function_call": function}
    call = {"index": begins.number, "id": begins.id, "type": "function", "function": function}
    return {"tool_calls": [call]}


def token_logprob(token: ScoredToken, top: int | None) -> Json:
    """``top``: alternatives to show."""
    alternatives = [_logprob(*each) for each in token.top[:top]]
    return _logprob(token.data, token.logprob) | {"top_logprobs": alternatives}


def _logprob(data: bytes, logprob: float | None) -> Json:
    return {"token": spelled(data), "logprob": logprob, "bytes": list(data)}


class ChatCompletions(OpenAI):
    """``POST /v1/chat/completions``"""

    path = "/v1/chat/completions"
    name = "chat_completions"
    description = "OpenAI's chat completions; ``nudging`` in the body says how."
    body: type[BaseModel] = ChatRequest
    responses = described(ChatCompletion, ChatCompletionChunk)

    def parse(self, body: bytes, shelf: Shelf[Any]) -> tuple[Ask, Reply]:
        request = ChatRequest.model_validate_json(body)
        return request.ask(), ChatRenderer.of(request)
