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
from server.core import Finished, Piece, ScoredToken, Usage

FINGERPRINT = f"nudge-{__version__}"

Json = dict[str, Any]


class Renderer(ABC):
    """What the two completion routes have in common: one answer's envelope.

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

    def chunks(self, piece: Piece) -> Iterator[Json]:
        """The stream's chunks for one piece: one, or none."""
        text = "" if self.rewrites else piece.text
        if not (text or self.trace or (piece.scored and self.keeps_empty)):
            return
        choice = self._delta({"content": text}, piece.scored)
        if self.trace:
            choice["nudging"] = {"pieces": [_trace(piece)]}
        yield self._chunk([choice])

    def last_chunks(self, finished: Finished) -> Iterator[Json]:
        choice = self._delta({"content": finished.text} if finished.text else {}, ())
        choice["finish_reason"] = finished.finish_reason
        if self.trace:
            choice["nudging"] = {"pieces": [], **_outcome(finished)}
        yield self._chunk([choice])
        if self.include_usage:
            yield self._chunk([]) | {"usage": usage(finished.usage)}

    def whole(self, pieces: Sequence[Piece], finished: Finished) -> Json:
        """The answer that isn't streamed."""
        text = finished.text
        if text is None:
            text = "".join(piece.text for piece in pieces)
        choice = self._choice(text, [token for piece in pieces for token in piece.scored])
        choice["finish_reason"] = finished.finish_reason
        if self.trace:
            choice["nudging"] = _outcome(finished) | {"pieces": [_trace(p) for p in pieces]}
        return self._envelope(self.object) | {
            "choices": [choice],
            "usage": usage(finished.usage),
        }

    def _chunk(self, choices: list[Json]) -> Json:
        chunk = self._envelope(self.chunk_object) | {"choices": choices}
        if self.include_usage:
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
    def first_chunks(self) -> Iterator[Json]:
        """What a stream says before any text."""

    @abstractmethod
    def _delta(self, delta: Json, scored: Sequence[ScoredToken]) -> Json: ...

    @abstractmethod
    def _choice(self, text: str, scored: Sequence[ScoredToken]) -> Json: ...


class ChatRenderer(Renderer):
    """``chat.completion`` and ``chat.completion.chunk``"""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def first_chunks(self) -> Iterator[Json]:
        yield self._chunk([self._delta({"role": "assistant", "content": ""}, ())])

    def _delta(self, delta: Json, scored: Sequence[ScoredToken]) -> Json:
        return {
            "index": 0,
            "delta": delta,
            "logprobs": self._logprobs(scored) if scored else None,
            "finish_reason": None,
        }

    def _choice(self, text: str, scored: Sequence[ScoredToken]) -> Json:
        return {
            "index": 0,
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
        self._offset = 0

    def first_chunks(self) -> Iterator[Json]:
        return iter(())

    def _delta(self, delta: Json, scored: Sequence[ScoredToken]) -> Json:
        return self._choice(delta.get("content", ""), scored)

    def _choice(self, text: str, scored: Sequence[ScoredToken]) -> Json:
        return {
            "index": 0,
            "text": text,
            "logprobs": None if self.top is None else self._logprobs(scored),
            "finish_reason": None,
        }

    def _logprobs(self, scored: Sequence[ScoredToken]) -> Json:
        offsets = []
        for token in scored:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {
            "text_offset": offsets,
            "tokens": [token.text for token in scored],
            "token_logprobs": [token.logprob for token in scored],
            "top_logprobs": [dict(token.top[: self.top]) for token in scored],
        }


def usage(counts: Usage) -> Json:
    """OpenAI's ``usage``; prompt tokens are the base model's where it took part."""
    prompt = counts.base_prompt_tokens or counts.aligned_prompt_tokens
    shown: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": prompt + counts.completion_tokens,
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
    return shown


def _outcome(finished: Finished) -> Json:
    return {"stop_reason": finished.stop_reason, "rounds": finished.usage.rounds}


def _trace(piece: Piece) -> Json:
    shown: Json = {"text": piece.text, "speaker": piece.speaker, "top_prob": piece.top_prob}
    if piece.rejected is not None:
        shown["rejected"] = {"text": piece.rejected.text, "top_prob": piece.rejected.top_prob}
    return shown


def _logprob(text: str, logprob: float) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
