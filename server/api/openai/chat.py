"""Chat completions: the request, its answers, and the two as a dialect.

Knows: what of it is of chat completions alone. Does not know: how an answer is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from server.api.ask import Ask, Chat
from server.api.dialect import Reply
from server.api.fields import Whole, empty, only, refuse, refused
from server.api.openai.fields import MAX_TOP_LOGPROBS
from server.api.openai.messages import Conversation
from server.api.openai.render import Json, OpenAI, Renderer, described, spelled
from server.api.openai.requests import Generation
from server.api.openai.schemas import ChatCompletion, ChatCompletionChunk
from server.api.store import Shelf
from server.core import ScoredToken, Usage


class ChatRequest(Conversation, Generation):
    """``POST /v1/chat/completions``"""

    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

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
        prompt = Chat(
            self.conversation(), self.chat_template_kwargs, self.prompt_end, self.tools_asked
        )
        return self.ask_of(prompt)


class ChatRenderer(Renderer):
    """``chat.completion`` and ``chat.completion.chunk``"""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def first_chunks(self, index: int, echo: str, usage: Usage | None) -> Iterator[Json]:
        yield self._chunk([self._delta(index, {"role": "assistant", "content": ""}, ())], usage)

    def _delta(self, index: int, delta: Json, scored: Sequence[ScoredToken]) -> Json:
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(scored) if scored else None,
            "finish_reason": None,
        }

    def _choice(self, index: int, text: str, scored: Sequence[ScoredToken]) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if self.top is None else self._logprobs(scored),
            "finish_reason": None,
        }

    def _logprobs(self, scored: Iterable[ScoredToken]) -> Json:
        return {
            "content": [token_logprob(token, self.top) for token in scored],
            "refusal": None,
        }


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
