"""What is asked for: how tokens are drawn, by which policy, and when an answer ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from server.core.names import Speaker
from server.policies import DEFAULT, Policy


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


@dataclass(frozen=True, slots=True)
class ThinkingLimit:
    """How much is to be thought before an answer.

    tokens: of the thoughts, at most. opens, closes: what stands in front of them and behind.
    thinking: whether the answer begins in them. marker: what ends them too, of a tool call.
    """

    tokens: int
    opens: str
    closes: str
    thinking: bool = False
    marker: str = ""

    @property
    def ends(self) -> tuple[str, ...]:
        return (self.closes, self.marker) if self.marker else (self.closes,)


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
    thinking: how much may be thought before it; None: as much as is.
    session: a client's name for what belongs together, where engines run elsewhere: what is asked
        with one name goes to the same server.
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
    thinking: ThinkingLimit | None = None
    session: str | None = None

    @property
    def limit(self) -> int:
        """Committed tokens at most."""
        return UNLIMITED if self.max_tokens is None else self.max_tokens

    def adjusting(self) -> Iterator[str]:
        """The fields by which a token's probability isn't what the model says alone."""
        sampling = self.sampling
        asked: dict[str, object] = {
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": sampling.repetition_penalty != 1,
            "logit_bias": sampling.logit_bias,
            "min_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
        }
        return (field for field, wanted in asked.items() if wanted)

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
