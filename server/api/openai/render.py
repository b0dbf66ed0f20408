"""Pieces to OpenAI's objects.

Knows: the shapes of chat completions, completions and their chunks, and where our trace and
usage go in them. Does not know: how pieces come about, bytes on the wire.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from server import __version__
from server.core import Finished, Piece, Rejected, ScoredToken, Usage
from server.text.tokenizer import TextOffsets

FINGERPRINT = f"nudge-{__version__}"

Json = dict[str, Any]


class Renderer(ABC):
    """What the two completion routes have in common: the envelope of a request's answers.

    Args:
        model: the name as it was asked for.
        trace: whether the pieces go out too.
        include_usage: whether a stream ends with a usage chunk.
        top: alternatives a token to show; None: no log probabilities.
    """

    prefix: str
    object: str
    chunk_object: str

    def __init__(self, model: str, *, trace: bool, include_usage: bool, top: int | None) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.model = model
        self.created = int(time.time())
        self.trace = trace
        self.include_usage = include_usage
        self.top = top

    def first_chunks(self, index: int, echo: str, usage: Usage | None) -> Iterator[Json]:
        """What a stream says before any text of an answer."""
        if echo:
            yield self._chunk([self._delta(index, {"content": echo}, ())], usage)

    def chunks(self, index: int, piece: Piece, usage: Usage | None) -> Iterator[Json]:
        """The stream's chunks for one piece: one, or none. ``usage``: so far, where asked."""
        text = piece.text
        scored = self._shown([piece])
        traced = self._traced([piece])
        if not (text or scored or traced):
            return
        choice = self._delta(index, {"content": text}, scored)
        if traced:
            choice["nudging"] = {"pieces": traced}
        yield self._chunk([choice], usage)

    def last_chunk(self, index: int, finished: Finished, usage: Usage | None) -> Json:
        """The end of one answer in a stream."""
        choice = self._delta(index, {}, ())
        choice["finish_reason"] = finished.finish_reason
        if self.trace:
            choice["nudging"] = {"pieces": [], **_outcome(finished)}
        return self._chunk([choice], usage)

    def usage_chunks(self, usage: Usage) -> Iterator[Json]:
        """What a stream says after the last answer."""
        if self.include_usage:
            yield self._chunk([], usage)

    def choice(self, index: int, pieces: Sequence[Piece], finished: Finished, echo: str) -> Json:
        """One answer that isn't streamed."""
        text = "".join(piece.text for piece in pieces)
        choice = self._choice(index, echo + text, self._shown(pieces))
        choice["finish_reason"] = finished.finish_reason
        if self.trace:
            choice["nudging"] = _outcome(finished) | {"pieces": self._traced(pieces)}
        return choice

    def whole(self, choices: Sequence[Json], usage: Usage) -> Json:
        """The answers that aren't streamed."""
        return self._envelope(self.object) | {"choices": choices, "usage": shown_usage(usage)}

    def _chunk(self, choices: list[Json], usage: Usage | None) -> Json:
        chunk = self._envelope(self.chunk_object) | {"choices": choices}
        if usage is not None:
            chunk["usage"] = shown_usage(usage)
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

    places: tuple[str, ...] = ("answer",)
    """Which tokens are reported (`ScoredToken.place`)."""

    def _shown(self, pieces: Iterable[Piece]) -> list[ScoredToken]:
        tokens = (token for piece in pieces for token in piece.scored)
        return [token for token in tokens if token.place in self.places]

    def _traced(self, pieces: Iterable[Piece]) -> list[Json]:
        return [_trace(piece) for piece in pieces if self.trace and not piece.only_scores]

    @abstractmethod
    def _delta(self, index: int, delta: Json, scored: Sequence[ScoredToken]) -> Json: ...

    @abstractmethod
    def _choice(self, index: int, text: str, scored: Sequence[ScoredToken]) -> Json: ...


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
            "content": [
                _logprob(token.data, token.logprob)
                | {"top_logprobs": [_logprob(*each) for each in token.top[: self.top]]}
                for token in scored
            ],
            "refusal": None,
        }


class CompletionRenderer(Renderer):
    """``text_completion``, streamed and not"""

    prefix = "cmpl"
    object = "text_completion"
    chunk_object = "text_completion"
    # The position where the model ended, with the empty text: whoever looks at probabilities
    # sees that it was computed, as in vLLM's server.
    places = ("prompt", "answer", "end")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offsets: dict[tuple[int, bool], TextOffsets] = {}

    def first_chunks(self, index: int, echo: str, usage: Usage | None) -> Iterator[Json]:
        self._begin(index, echo)
        yield from super().first_chunks(index, echo, usage)

    def choice(self, index: int, pieces: Sequence[Piece], finished: Finished, echo: str) -> Json:
        self._begin(index, echo)
        return super().choice(index, pieces, finished, echo)

    def _begin(self, index: int, echo: str) -> None:
        """Prompt and answer begin anew: a character never reaches from one into the other."""
        self._offsets[index, True] = TextOffsets()
        self._offsets[index, False] = TextOffsets(len(echo))

    def _delta(self, index: int, delta: Json, scored: Sequence[ScoredToken]) -> Json:
        return self._choice(index, delta.get("content", ""), scored)

    def _choice(self, index: int, text: str, scored: Sequence[ScoredToken]) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": None if self.top is None else self._logprobs(index, scored),
            "finish_reason": None,
        }

    def _logprobs(self, index: int, scored: Sequence[ScoredToken]) -> Json:
        offsets = (self._offsets[index, token.place == "prompt"] for token in scored)
        return {
            "text_offset": [
                each.push(token.data) for each, token in zip(offsets, scored, strict=True)
            ],
            "tokens": [_spelled(token.data) for token in scored],
            "token_logprobs": [token.logprob for token in scored],
            "top_logprobs": [self._top(token) for token in scored],
        }

    def _top(self, token: ScoredToken) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for data, logprob in token.top[: self.top]:
            top.setdefault(_spelled(data), logprob)  # of several that are spelled alike the best
        return top


def shown_usage(counts: Usage) -> Json:
    """OpenAI's ``usage``, with ``nudging`` where both models took part."""
    shown: Json = {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
    }
    if counts.base_prompt_tokens and counts.aligned_prompt_tokens:
        shown["nudging"] = {
            "nudged_tokens": counts.aligned_tokens,
            "base_tokens": counts.base_tokens,
            "rounds": counts.rounds,
            "nudged_share": round(counts.nudged_share, 4),
            "aligned_prompt_tokens": counts.aligned_prompt_tokens,
            "base_steps": counts.base_steps,
            "aligned_steps": counts.aligned_steps,
            "discarded_tokens": counts.discarded_tokens,
        }
        if counts.untuned_steps:
            shown["nudging"]["untuned_steps"] = counts.untuned_steps
    return shown


def _outcome(finished: Finished) -> Json:
    shown: Json = {"stop_reason": finished.stop_reason, "rounds": finished.usage.rounds}
    return shown | _rejected(finished.rejected)


def _trace(piece: Piece) -> Json:
    shown: Json = {"text": piece.text, "speaker": piece.speaker, "top_prob": piece.top_prob}
    return shown | _rejected(piece.rejected)


def _rejected(token: Rejected | None) -> Json:
    return {} if token is None else {"rejected": {"text": token.text, "top_prob": token.top_prob}}


def _logprob(data: bytes, logprob: float | None) -> Json:
    return {"token": _spelled(data), "logprob": logprob, "bytes": list(data)}


def _spelled(data: bytes) -> str:
    """A token as text. One that is a part of a character is spelled as OpenAI does it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
