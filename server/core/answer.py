"""What an answer consists of, what it has cost, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.core.names import Speaker

FinishReason = Literal["stop", "length", "tool_calls"]
"""OpenAI's ``finish_reason``."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The base model's token at the uncertain position where a nudge begins."""

    text: str
    top_prob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token for OpenAI's ``logprobs``.

    data: its own bytes, parts of a character too, as they are in the text: those of an answer's
        tokens join to the answer.
    logprob: natural logarithm; None for a prompt's first token.
    top: the likeliest tokens in its place as (bytes, logprob), best first; the token itself, where
        it is one of them, has its ``data``.
    place: ``end`` is the token with which a model ended, which has no text.
    """

    data: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()
    place: Literal["prompt", "answer", "end"] = "answer"


@dataclass(frozen=True, slots=True)
class Piece:
    """Committed text of one speaker; ``"".join(p.text)`` over a stream is the answer.

    A piece ends with a whole character that ends with a token.

    top_prob: the speaker's raw top-1 probability where the piece begins (for a piece of
        several base tokens the lowest of them, so that ``top_prob ≥ γ`` says it of each). NaN
        where nobody asked (`AnswerRequest.traced`).
    tokens: how many of the speaker's tokens it took.
    rejected: at the first piece of a nudge, what the base model would have written.
    scored: one entry a token, where the request asked for log probabilities.
    markers: the special tokens that were committed in it, which are no text (``<tool_call>``): the
        offset of the character in front of which each stands, and how it is spelled, in order.
    """

    text: str
    speaker: Speaker
    top_prob: float
    tokens: int
    rejected: Rejected | None = None
    scored: tuple[ScoredToken, ...] = ()
    markers: tuple[tuple[int, str], ...] = ()

    @property
    def only_tokens(self) -> bool:
        """Whether it is there for tokens without text alone: a prompt's, an end, special ones, the
        parts of a character that ``max_tokens`` cut."""
        return not self.text and bool(self.scored or self.markers)


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost. Tokens are committed ones; steps are decode positions computed;
    prefilled are ids that were read: prompts, the other's text, and what had left the cache; cached
    are those of ``prompt_tokens`` that were in the cache. The untuned model is the third one, where
    a policy needs it."""

    base_prompt_tokens: int = 0
    aligned_prompt_tokens: int = 0
    base_tokens: int = 0
    aligned_tokens: int = 0
    rounds: int = 0
    base_steps: int = 0
    aligned_steps: int = 0
    discarded_tokens: int = 0
    base_prefilled: int = 0
    aligned_prefilled: int = 0
    untuned_steps: int = 0
    untuned_prefilled: int = 0
    cached_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Of the base model's prompt; of the aligned model's where it answers alone."""
        return self.base_prompt_tokens or self.aligned_prompt_tokens

    @property
    def completion_tokens(self) -> int:
        return self.base_tokens + self.aligned_tokens

    @property
    def nudged_share(self) -> float:
        return self.aligned_tokens / (self.completion_tokens or 1)

    @staticmethod
    def total(prompts: Sequence[Sequence[Usage]]) -> Usage:
        """The sum over the answers to several prompts; each prompt is read once."""
        answers = [usage for answers in prompts for usage in answers]
        firsts = [answers[0] for answers in prompts]
        return Usage(
            base_prompt_tokens=sum(first.base_prompt_tokens for first in firsts),
            aligned_prompt_tokens=sum(first.aligned_prompt_tokens for first in firsts),
            base_tokens=sum(usage.base_tokens for usage in answers),
            aligned_tokens=sum(usage.aligned_tokens for usage in answers),
            rounds=sum(usage.rounds for usage in answers),
            base_steps=sum(usage.base_steps for usage in answers),
            aligned_steps=sum(usage.aligned_steps for usage in answers),
            discarded_tokens=sum(usage.discarded_tokens for usage in answers),
            base_prefilled=sum(usage.base_prefilled for usage in answers),
            aligned_prefilled=sum(usage.aligned_prefilled for usage in answers),
            untuned_steps=sum(usage.untuned_steps for usage in answers),
            untuned_prefilled=sum(usage.untuned_prefilled for usage in answers),
            cached_tokens=sum(first.cached_tokens for first in firsts),
        )


StopReason = Literal[
    "aligned_end",  # the aligned model ended its turn
    "end_of_text",  # one model alone: it ended
    "stop_string",
    "stop_token",
    "length",  # max_tokens
    "context",  # a model's context is full
    "max_rounds",
    "repeated_round",
    "repetition",
    "nudging_model_stop",  # the authors' own procedure and names, from here on
    "repeated_nudging_words",
    "round",
]


_CUT = frozenset({"length", "context", "max_rounds", "round"})


@dataclass(frozen=True, slots=True)
class Finished:
    """The last value of every answer's stream. A stream that ends without it is an error.

    matched: the stop string or the stop token's id that ended it, if one did.
    rejected: what the base model would have written at the end, where it gave way there and the
        answer ended instead of a nudge.
    calls: how many tools the answer calls, as its text was read (`server.decoding.parsing`).
    reasoning_tokens: how many of the answer's tokens are reasoning, read in the same way.
    """

    stop_reason: StopReason
    usage: Usage
    matched: str | int | None = None
    rejected: Rejected | None = None
    calls: int = 0
    reasoning_tokens: int = 0

    @property
    def was_cut(self) -> bool:
        """Whether it is over before anybody ended it."""
        return self.stop_reason in _CUT

    @property
    def finish_reason(self) -> FinishReason:
        if self.was_cut:
            return "length"
        return "tool_calls" if self.calls else "stop"
