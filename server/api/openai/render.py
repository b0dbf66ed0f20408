"""What OpenAI's two dialects have in common: the parts of an answer as its objects.

Knows: the envelope of completions and their chunks, where our trace and usage go in them, and how a
stream ends. Does not know: how parts come about, which tokens an object reports and how.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel

from server import __version__
from server.api import extension, sse
from server.api.dialect import Written
from server.api.errors import ApiError
from server.api.openai.errors import error_body
from server.api.openai.requests import Generation
from server.api.openapi import responses
from server.core import Finished, ScoredToken, Usage
from server.decoding.parsing import Part

FINGERPRINT = f"nudge-{__version__}"

Json = dict[str, Any]


class Renderer(ABC):
    """A request's answers, in one envelope (`server.api.dialect.Reply`).

    Args:
        model: the name as it was asked for.
        trace: whether the pieces go out too.
        include_usage: whether a stream ends with a usage chunk.
        top: alternatives a token to show; None: no log probabilities.
    """

    prefix: str
    object: str
    chunk_object: str

    keep_alive = sse.KEEP_ALIVE

    places: tuple[str, ...] = ("answer",)
    """Which tokens are reported (`ScoredToken.place`)."""

    def __init__(self, model: str, *, trace: bool, include_usage: bool, top: int | None) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.model = model
        self.created = int(time.time())
        self.trace = trace
        self.include_usage = include_usage
        self.top = top
        self._reasoning_tokens = 0

    @classmethod
    def of(cls, request: Generation) -> Self:
        return cls(request.model, **cls.options(request))

    @classmethod
    def options(cls, request: Any) -> Json:
        """What a request says of how it is answered."""
        names = ("trace", "include_usage", "top")
        return {name: getattr(request, name) for name in names}

    # -- a stream ----------------------------------------------------------------------------

    def begins(self, index: int, echo: str, usage: Usage | None) -> Iterable[bytes]:
        return map(sse.event, self.first_chunks(index, echo, usage))

    def shows(self, index: int, event: Part | Finished, usage: Usage | None) -> Iterable[bytes]:
        return map(sse.event, self.chunks(index, event, usage))

    def over(self, usage: Usage) -> Iterable[bytes]:
        if self.include_usage:
            yield sse.event(self._chunk([], usage))
        yield sse.DONE

    def failed(self, failure: ApiError) -> Iterable[bytes]:
        return sse.event(error_body(failure)), sse.DONE

    def first_chunks(self, index: int, echo: str, usage: Usage | None) -> Iterator[Json]:
        """What a stream says before any text of an answer."""
        if echo:
            yield self._chunk([self._delta(index, {"content": echo}, ())], usage)

    def chunks(self, index: int, event: Part | Finished, usage: Usage | None) -> Iterator[Json]:
        """The stream's chunks for one part, or the end: one, or none."""
        if isinstance(event, Finished):
            self._reasoning_tokens += event.reasoning_tokens
            choice = self._delta(index, {}, ())
            choice["finish_reason"] = self._ended(event)
            if self.trace:
                choice["nudging"] = {"pieces": [], **extension.outcome(event)}
            yield self._chunk([choice], usage)
            return
        delta = self._shown(event)
        scored = self._reported([event])
        traced = self._traced([event])
        if delta or scored or traced:
            choice = self._delta(index, delta or {"content": ""}, scored)
            if traced:
                choice["nudging"] = {"pieces": traced}
            yield self._chunk([choice], usage)

    # -- a whole answer ----------------------------------------------------------------------

    def whole(self, answers: Sequence[Written], usage: Usage) -> Json:
        choices = [self.choice(index, answer) for index, answer in enumerate(answers)]
        tokens = sum(answer.finished.reasoning_tokens for answer in answers)
        shown = shown_usage(usage, tokens)
        return self._envelope(self.object) | {"choices": choices, "usage": shown}

    def choice(self, index: int, answer: Written) -> Json:
        choice = self._choice(index, answer, self._reported(answer.parts))
        choice["finish_reason"] = self._ended(answer.finished)
        if self.trace:
            outcome = extension.outcome(answer.finished)
            choice["nudging"] = outcome | {"pieces": self._traced(answer.parts)}
        return choice

    # -- either ------------------------------------------------------------------------------

    def _chunk(self, choices: list[Json], usage: Usage | None) -> Json:
        chunk = self._envelope(self.chunk_object) | {"choices": choices}
        if usage is not None:
            chunk["usage"] = shown_usage(usage, self._reasoning_tokens)
        elif self.include_usage:
            chunk["usage"] = None
        return chunk

    def _envelope(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _shown(self, part: Part) -> Json | None:
        """A part in a stream's delta; None where there is nothing to show."""
        return {"content": part.piece.text} if part.piece.text else None

    def _ended(self, finished: Finished) -> str:
        return finished.finish_reason

    def _reported(self, parts: Iterable[Part]) -> list[ScoredToken]:
        tokens = (token for part in parts for token in part.piece.scored)
        return [token for token in tokens if token.place in self.places]

    def _traced(self, parts: Iterable[Part]) -> list[Json]:
        return extension.pieces(part.piece for part in parts) if self.trace else []

    @abstractmethod
    def _delta(self, index: int, delta: Json, scored: Sequence[ScoredToken]) -> Json: ...

    @abstractmethod
    def _choice(self, index: int, answer: Written, scored: Sequence[ScoredToken]) -> Json: ...


def shown_usage(counts: Usage, reasoning_tokens: int = 0) -> Json:
    """OpenAI's ``usage``, with ``nudging`` where both models took part, and details where one
    has thought."""
    shown: Json = {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
    }
    if reasoning_tokens:
        shown["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    nudging = extension.usage(counts)
    return shown if nudging is None else shown | {"nudging": nudging}


def spelled(data: bytes) -> str:
    """A token as text. One that is a part of a character is spelled as OpenAI does it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


# -- a dialect ------------------------------------------------------------------------------------


class OpenAI:
    """How either of them fails."""

    statuses: Mapping[int, int] = {}

    def error(self, failure: ApiError) -> Json:
        return error_body(failure)


def described(whole: type[BaseModel], chunk: type[BaseModel]) -> dict[int | str, Json]:
    """What either of them answers."""
    failures = (400, 401, 404, 413, 415, 429, 503, 504)
    return responses(whole, *failures, events=chunk, ends="The last one holds `[DONE]`.")
