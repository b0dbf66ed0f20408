"""The values that flow through the server.

Knows: the vocabulary of the domain, as frozen values. Does not know: any library, any
engine, HTTP, or a rule of the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from server.policies import DEFAULT, Policy

Speaker = Literal["base", "aligned"]
"""The model that produced a piece of output."""

TokenIds: TypeAlias = list[int]

FinishReason = Literal["stop", "length", "tool_calls"]
"""OpenAI's ``finish_reason``."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. parameters: the JSON schema of its arguments, an object.
    strict: whether the schema must be followed exactly, or refused."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made. arguments: a JSON text, an object where a model wrote it well."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    calls: what an assistant called, behind what it said. call_id: in a ``tool``'s message, the call
    that it answers. reasoning: an assistant's, in front of what it said.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Literally:
    """Text of a user that spells a control token and must stay text."""

    text: str


PromptText: TypeAlias = tuple[str | Literally, ...]
"""A rendered prompt: plain strings, in which control tokens are control tokens, and
``Literally`` parts, in which they are not. Joined, it is the text the model reads."""


def joined(prompt: PromptText) -> str:
    """The text of a prompt."""
    return "".join(part if isinstance(part, str) else part.text for part in prompt)


@dataclass(frozen=True, slots=True)
class PromptPair:
    """The same conversation as each model reads it.

    headers: what the base model's prompt has between the turns of a conversation, as far as an
        answer can't hold it. See `server.text.headers`.
    thinking: whether they end where the model thinks already, behind what opens that.
    tools: whether the models are told of some.
    """

    base: PromptText
    aligned: PromptText
    headers: tuple[str, ...] = ()
    thinking: bool = False
    tools: bool = False


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn, the same for both models. OpenAI's field names.

    ``temperature`` 0 is greedy, and so is ``top_p`` 0, which is read as that. ``top_k`` 0 and
    ``min_p`` 0 are off. With ``seed`` an answer
    is reproducible on the same engines. ``presence_penalty`` and ``frequency_penalty`` count the
    answer so far, whoever wrote it, in the speaker's tokens; ``repetition_penalty`` the prompt
    too. ``logit_bias`` is added to the speaker's logits, as (token id, bias).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.top_p == 0:
            object.__setattr__(self, "temperature", 0.0)
            object.__setattr__(self, "top_p", 1.0)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def penalized(self) -> bool:
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties != (0, 0, 1)


EndCheck = Literal["newline", "off"]


@dataclass(frozen=True, slots=True)
class NudgingConfig:
    """The settings of the policies; each listens to those in its row of `server.policies`.

    gamma: the threshold γ on the base model's top-1 probability; over 1 the aligned model
        writes everything (paper, Algorithm 1).
    entropy: the threshold on the entropy of the base model's distribution, in nats, over 0.
    start: who writes the first word (the paper's algorithm: base; the authors' code: aligned).
    end_lookahead: tokens the aligned model looks ahead at each nudge for the end of its turn.
    end_check: where the aligned model is asked whether it would end, besides its own turns.
    max_rounds: rounds after which an answer is cut; None: as many as the policy itself allows.
    """

    gamma: float = 0.4
    entropy: float = 2.0
    policy: Policy = DEFAULT
    start: Speaker = "aligned"
    end_lookahead: int = 0
    end_check: EndCheck = "newline"
    max_rounds: int | None = None


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
    prefilled are ids that were read: prompts, the other's text, and what had left the cache. The
    untuned model is the third one, where a policy needs it."""

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


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match: a grammar of llguidance, made by `server.text.grammar`.

    begun: the beginning of the text that it is to match, which the answer goes on with.
    opens: where any text is allowed at first, the text that ends that: what comes behind it is to
        be followed. Empty: all of it is.
    only_first: whether ``opens`` does so at the answer's beginning alone.
    field: of a request, that asks for it.
    """

    source: str
    begun: str = ""
    opens: str = ""
    only_first: bool = False
    field: str = "response_format"

    @property
    def free(self) -> bool:
        """Whether an answer may begin with any text."""
        return bool(self.opens)


UNLIMITED = 2**31
"""For ``max_tokens``: more than any context holds."""


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """Everything the orchestrator needs for one answer.

    max_tokens: committed tokens at most; None: as many as the contexts hold; 0: the prompt is
        only read.
    min_tokens: committed tokens before anything but ``max_tokens`` and a full context ends it.
    ignore_eos: whether no model's end of text, and no loop guard, ends it.
    stop_token_ids: tokens that end it where the speaker draws them; they are no part of it.
    top_logprobs: how many alternatives to report a token; None: no ``scored`` tokens.
    prompt_logprobs: whether to report the prompt's tokens too. Of one model alone.
    traced: whether the pieces say their ``top_prob``. Where a policy needs it they do anyway; one
        model alone is faster without.
    grammar: what the answer as a whole must match.
    marked: whether it is marked up, with calls or thoughts: a model reads the other one's marks as
        its own.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    traced: bool = True
    grammar: Grammar | None = None
    marked: bool = False

    @property
    def limit(self) -> int:
        """Committed tokens at most."""
        return UNLIMITED if self.max_tokens is None else self.max_tokens

    def not_before(self, ends: Sequence[int], committed: int) -> tuple[tuple[int, int], ...]:
        """What a turn that begins after ``committed`` tokens must not draw yet: for each token
        that would end the answer too early, the tokens of the turn that must come first.

        Args:
            ends: the tokens with which the speaker ends the answer.
        """
        wait = max(0, self.min_tokens - committed)
        own = UNLIMITED if self.ignore_eos else wait
        waits = dict.fromkeys(self.stop_token_ids, wait) | dict.fromkeys(ends, own)
        return tuple((token, count) for token, count in waits.items() if count)

    def sample(self, number: int) -> AnswerRequest:
        """The request of one of several independent answers: each has a seed of its own."""
        seed = self.sampling.seed
        if seed is None or not number:
            return self
        return replace(self, sampling=replace(self.sampling, seed=seed + number))


class NudgeError(Exception):
    """Root of the errors that have a meaning for whoever asked.

    NudgeError
    ├── InvalidRequest        the request can't be served as it is (HTTP 400)
    │   └── ContextLengthExceeded
    ├── EngineUnavailable     an engine is loading, died or went away (HTTP 503)
    └── ConfigError           a configuration can't work; the message says what to change
    """


class InvalidRequest(NudgeError):
    """``param`` names the request field that is wrong."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceeded(InvalidRequest):
    def __init__(self, message: str, *, param: str | None = "messages"):
        super().__init__(message, param=param, code="context_length_exceeded")


class EngineUnavailable(NudgeError):
    """The engine can't serve now. ``loading`` when it has not started yet."""

    def __init__(self, message: str, *, loading: bool = False):
        super().__init__(message)
        self.loading = loading


class ConfigError(NudgeError):
    pass
