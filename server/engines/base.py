"""The one interface between the policy's world and whatever runs a model.

The contract, which ``tests/contract`` holds every implementation to:

1. ``generate`` yields one `Token` for each token taken, in order, then exactly one `TurnEnd`,
   always last. It raises `EngineUnavailable` if the engine dies.
2. Each token carries its raw log probability and the likeliest alternatives, from the model's
   own distribution: before temperature, top-p, penalties and any forced stop. With ``top = 0`` a
   plain turn carries neither, and writes the same.
3. With ``stop_below = γ`` the engine stops *by itself* at the first position whose top-1
   probability is under γ, and reports that position in ``TurnEnd.rejected`` without taking it.
   p1 == γ is taken. The same goes for its end of text.
   Penalties, bias, ``not_before`` and grammar change what is drawn, over all that the session
   holds after its prompt, whoever wrote it.
4. With ``word`` it stops after one word (`server.text.words.Word`) in the same way.
5. Tokens not taken are not in the context of the next ``generate``. Tokens yielded are, until
   ``extend(..., drop=n)`` takes the last n of them back.
6. Closing the generator aborts the work in the engine at once; ``aclose`` of the session does
   too, any number of times.
7. ``extend`` never changes what was read before: contexts only grow, apart from ``drop``.
8. ``check`` gives what greedy turns of one token would give at each position of a draft, in one
   forward pass, and leaves the context as it was. So does ``score`` for the context itself.

When a turn ends is written in `server.engines.turn`, for every implementation.

How a session keeps its KV (prefix cache, resumable request, remote slot) is the engine's own
business. Does not know: the policy, HTTP, any implementation.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, overload, runtime_checkable

import numpy as np
import numpy.typing as npt

from server.core import Grammar, SamplingParams, TokenIds
from server.text.tokenizer import Tokenizer
from server.text.words import Word

UNKNOWN = math.nan
"""The probability of a token of which none was asked for."""


class Distribution(Sequence[tuple[int, float]]):
    """All tokens of a position as arrays: as a `Token.top` it is that, and whoever wants all of
    them takes ``ids`` and ``logprobs``, entry by entry the same token's, in no order.

    The best one is found without sorting; the others are sorted when somebody asks for them.
    """

    __slots__ = ("_ranked", "ids", "logprobs")

    def __init__(self, ids: npt.NDArray[np.int64], logprobs: npt.NDArray[np.float64]) -> None:
        self.ids = ids
        self.logprobs = logprobs
        self._ranked: tuple[tuple[int, float], ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[int, float]]: ...
    def __getitem__(self, index: int | slice) -> tuple[int, float] | Sequence[tuple[int, float]]:
        if index == 0:
            best = int(self.logprobs.argmax())
            return int(self.ids[best]), float(self.logprobs[best])
        return self._sorted()[index]

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return iter(self._sorted())

    def _sorted(self) -> tuple[tuple[int, float], ...]:
        if self._ranked is None:
            order = np.argsort(-self.logprobs, kind="stable")
            values = self.logprobs[order].tolist()
            self._ranked = tuple(zip(self.ids[order].tolist(), values, strict=True))
        return self._ranked


@dataclass(frozen=True, slots=True)
class Token:
    """One decode position.

    id: the token sampled. logprob: its raw natural-log probability, `UNKNOWN` if not asked for.
    top: the likeliest tokens of the position as (id, logprob), best first, at least one, but none
        where none was asked for. With `EVERY_TOKEN` it may be a `Distribution`.
    """

    id: int
    logprob: float
    top: Sequence[tuple[int, float]]

    @property
    def top_prob(self) -> float:
        """p1, the raw top-1 probability of the position, in [0, 1]; or `UNKNOWN`."""
        return math.exp(self.top[0][1]) if self.top else UNKNOWN


EndReason = Literal[
    "stop",  # the model ended: its end of text or of turn
    "uncertain",  # p1 < stop_below
    "word",  # the word is complete
    "length",  # max_tokens, or the context is full
]


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended. ``rejected`` is the position at the end that was computed and not
    taken: with ``uncertain`` its ``id`` is the likeliest token; with ``word`` it is the token with
    which the next word would begin; with ``stop`` it is the end token. None with ``length``, and
    where the token is not known."""

    reason: EndReason
    rejected: Token | None = None

    def drew(self, stop_token_ids: Sequence[int]) -> bool:
        """Whether one of these, a request's own, ended the turn."""
        drawn = self.rejected
        return self.reason == "stop" and drawn is not None and drawn.id in stop_token_ids


EVERY_TOKEN = 2**31
"""For ``TurnParams.top``: the whole vocabulary. Slow: for what compares, not for serving."""


@dataclass(frozen=True, slots=True)
class TurnParams:
    """One turn.

    max_tokens: tokens to take at most, ≥ 1.
    stop_below: γ, or None.
    word: stop after one word, of which these tokens are in the context already; None: don't.
    top: alternatives to report at each position. 0: none, and no probability at all, so that the
        engine need not compute it; in a plain turn, that is. With ``stop_below`` or ``word`` one
        is reported at least.
    turn: its number within the answer; with a seed, each turn draws its own numbers.
    ends: tokens that end the model's text in this turn, besides the engine's ``stop_ids``.
    stop_token_ids: tokens that end the turn (reason ``stop``) besides the model's own.
    not_before: (token id, n): tokens that can't be drawn among the first n of the turn.
    grammar: what the session's text after its prompt must match. A token that it doesn't allow
        can't be drawn, and p1 is then the raw probability of the likeliest token that it does.
    """

    sampling: SamplingParams
    max_tokens: int
    stop_below: float | None = None
    word: tuple[int, ...] | None = None
    top: int = 1
    turn: int = 0
    ends: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    not_before: tuple[tuple[int, int], ...] = ()
    grammar: Grammar | None = None

    @property
    def adjusted(self) -> bool:
        """Whether what can be drawn is another distribution than the model's own."""
        sampling = self.sampling
        return bool(sampling.penalized or sampling.logit_bias or self.not_before or self.grammar)

    @property
    def reported(self) -> int:
        """Alternatives that are reported at each position."""
        plain = self.stop_below is None and self.word is None
        return self.top if plain else max(1, self.top)

    def word_with(self, tokenizer: Tokenizer) -> Word | None:
        """The word that the turn is to stop after, as far as it is in the context."""
        return None if self.word is None else Word(tokenizer, self.word)

    @property
    def by_argmax(self) -> bool:
        """Whether the likeliest token is the one that will be drawn."""
        return self.sampling.greedy and not self.adjusted


Ability = Literal[
    "adjust",  # penalties, bias and `TurnParams.not_before`
    "grammar",  # `TurnParams.grammar`
    "check",  # `Session.check`
    "score",  # `Session.score`
    "distribution",  # `EVERY_TOKEN` of a position
]
"""What the contract lets an engine lack. What needs it is refused where it isn't there
(`server.serving.needs`), so no session is asked for it."""

ABILITIES: frozenset[Ability] = frozenset(get_args(Ability))


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is fixed about an engine.

    context_length: ids a session can hold, prompt included.
    stop_ids: tokens that end the model's text, the forced stop's own first.
    abilities: that it has.
    elsewhere: whether it runs on machines that aren't ours to start. Where it is gone, it comes
        back by itself.
    """

    name: str
    model: str
    context_length: int
    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    abilities: frozenset[Ability] = ABILITIES
    elsewhere: bool = False


class Session(Protocol):
    """One model's side of one answer: one turn, ``check`` or ``score`` at a time.

    length: ids in the context now. steps: decode steps so far, as far as this side has seen
    them; a ``check`` or ``score`` is one, or two where a long prompt is read first. prefilled: ids
    read so far that were given and not written here, whenever they were not in the KV cache (any
    more); a checked draft among them. cached: ids of the prompt that were in the KV cache when it
    was first read, as far as that is told.
    """

    @property
    def length(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def prefilled(self) -> int: ...

    @property
    def cached(self) -> int: ...

    def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]: ...

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        """The model's likeliest tokens after the context and after each token of a draft.

        At least one token, and at most one more than the draft has: what
        the engine can't tell in this pass is left out at the end, and what the context has no
        room for.

        Args:
            draft: ids that are not in the context.
            top: alternatives to report at each position, ≥ 1.

        Returns:
            Tokens whose ``id`` is the likeliest one's; entry i is for the position after i ids of
            the draft.
        """

    async def score(self, top: int) -> list[Token]:
        """What the model says of each id of the context but the first: its log probability
        behind those before it, and the likeliest ones there.

        All of them are read, also where the KV cache has them; then there must be room for one
        more. It counts as a step.

        Args:
            top: alternatives to report at each position, ≥ 1.
        """

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        """Take back the last ``drop`` yielded tokens, then append text of the other model."""

    async def aclose(self) -> None:
        """Abort whatever runs and free what the engine holds."""


async def collect(session: Session, params: TurnParams) -> tuple[list[Token], TurnEnd]:
    """A whole turn: the tokens that it took, and how it ended."""
    tokens: list[Token] = []
    async with aclosing(session.generate(params)) as events:
        async for event in events:
            if isinstance(event, TurnEnd):
                return tokens, event
            tokens.append(event)
    raise RuntimeError("the engine's turn ended without saying how")  # the contract, 1


async def look(session: Session, top: int) -> Token:
    """The next position; nothing is taken, and what was read stays in the engine.

    No probability is 2, so the engine reports its first position and stops there.
    """
    params = TurnParams(SamplingParams(temperature=0), max_tokens=1, stop_below=2.0, top=top)
    _, end = await collect(session, params)
    if end.rejected is None:
        raise RuntimeError("the engine reported no position")  # the contract, 3
    return end.rejected


class Engine(Protocol):
    @property
    def info(self) -> EngineInfo: ...

    def open(self, prompt: TokenIds) -> Session: ...

    @property
    def alive(self) -> bool:
        """False once the engine is known to be dead."""

    @property
    def running(self) -> int:
        """Sessions with a turn in the engine now."""

    async def check_health(self) -> None:
        """Raises `EngineUnavailable`."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Replica:
    """One of the servers that are one engine. sessions: that are there now. failures: requests to
    it that came to nothing, so far."""

    up: bool
    sessions: int
    failures: int


@runtime_checkable
class Replicated(Protocol):
    """An engine on servers elsewhere."""

    @property
    def servers(self) -> Mapping[str, Replica]:
        """By their urls."""

    def within(self, session: str) -> Engine:
        """This engine, for answers that a client says belong together."""
