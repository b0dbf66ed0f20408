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

FINGERPRINT = f"nudge-{__version__}"

Json = dict[str, Any]


class Renderer(ABC):
    """What the two completion routes have in common: the envelope of a request's answers.

    Args:
        model: the name as it was asked for.
        trace: whether the pieces go out too.
        include_usage: whether a stream ends with a usage chunk.
        rewrites: whether the answer is `Finished.text` rather than the pieces.
        top: alternatives a token to show; None: no log probabilities.
    """

    prefix: str
    object: str
    chunk_object: str

    def __init__(
        self, model: str, *, trace: bool, include_usage: bool, rewrites: bool, top: int | None
    ) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.model = model
        self.created = int(time.time())
        self.trace = trace
        self.include_usage = include_usage
        self.rewrites = rewrites
        self.top = top

    def first_chunks(self, index: int, echo: str, usage: Usage | None) -> Iterator[Json]:
        """What a stream says before any text of an answer."""
        if echo:
            yield self._chunk([self._delta(index, {"content": echo}, ())], usage)

    def chunks(self, index: int, piece: Piece, usage: Usage | None) -> Iterator[Json]:
        """The stream's chunks for one piece: one, or none. ``usage``: so far, where asked."""
        text = "" if self.rewrites else piece.text
        if not (text or self.trace or (piece.scored and self.keeps_empty)):
            return
        choice = self._delta(index, {"content": text}, piece.scored)
        if self.trace:
            choice["nudging"] = {"pieces": [_trace(piece)]}
        yield self._chunk([choice], usage)

    def last_chunk(self, index: int, finished: Finished, usage: Usage | None) -> Json:
        """The end of one answer in a stream."""
        choice = self._delta(index, {"content": finished.text} if finished.text else {}, ())
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
        text = finished.text
        if text is None:
            text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.scored]
        choice = self._choice(index, echo + text, tokens)
        choice["finish_reason"] = finished.finish_reason
        if self.trace:
            choice["nudging"] = _outcome(finished) | {"pieces": [_trace(p) for p in pieces]}
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

    keeps_empty = False
    """Whether tokens without text (an end of text) are reported too."""

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
                _logprob(token.text, token.logprob)
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
    keeps_empty = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offsets: dict[int, int] = {}

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
        offset, offsets = self._offsets.get(index, 0), []
        for token in scored:
            offsets.append(offset)
            offset += len(token.text)
        self._offsets[index] = offset
        return {
            "text_offset": offsets,
            "tokens": [token.text for token in scored],
            "token_logprobs": [token.logprob for token in scored],
            "top_logprobs": [dict(token.top[: self.top]) for token in scored],
        }


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


def _logprob(text: str, logprob: float) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
