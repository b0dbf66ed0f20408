"""One engine that holds both models of a pair, and says of each position what either would write.

The aligned model drafts, the base model reads several drafted tokens in one forward pass, and what
stands is decided inside the engine, by the policy's first rules: a word of the aligned model where
the base model is uncertain, the base model's own token where it isn't. So one request writes on as
an answer is likely to go on. It doesn't decide what is in the answer: it tells of its positions,
and whoever knows all the rules takes them, or asks anew from where the answer goes another way.

Knows: the shapes. Does not know: who asks, the policy, vLLM.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from server.core import TokenIds
from server.engines.base import Engine, EngineInfo, Token


@dataclass(frozen=True, slots=True)
class Position:
    """token: with which the text goes on. base, aligned: the likeliest token of either model there;
    ``aligned`` is None where it wasn't asked."""

    token: int
    base: Token
    aligned: Token | None


@dataclass(frozen=True, slots=True)
class Asked:
    """How positions are to be written.

    gamma: of the base model's certainty; over 1 the aligned model writes everything.
    word: ids of the aligned model's word in which the text goes on, the last ones of the context;
        empty: it begins one here, whatever the base model says; None: the base model is asked.
    most: positions. top: alternatives of either model at each. stops: tokens behind which nothing
        is wanted.
    drafting: the context as the aligned model reads it, where that isn't what the base model
        reads. What either goes on with is the same.
    """

    gamma: float
    word: tuple[int, ...] | None
    most: int
    top: int
    stops: tuple[int, ...] = ()
    drafting: tuple[int, ...] | None = None


@dataclass(slots=True)
class Cost:
    """What positions have cost. passes: forward passes of the base model. drafts: of the aligned
    one. prefilled: ids that were read and not in the KV cache. cached: of what was read first,
    those that were in it; None: before that."""

    passes: int = 0
    drafts: int = 0
    prefilled: int = 0
    cached: int | None = None


@runtime_checkable
class FusedEngine(Engine, Protocol):
    """As an `Engine` it is the base model alone."""

    @property
    def aligned(self) -> EngineInfo:
        """Of the model that drafts."""

    @property
    def longer(self) -> int:
        """By how many ids `Asked.drafting` may be longer than what the base model reads."""

    def positions(self, ids: TokenIds, asked: Asked, cost: Cost) -> AsyncGenerator[Position]:
        """The positions behind a context of two ids at least, in order; closing it aborts the work
        at once. It may end early, for any reason, and then may be asked anew. Where either context
        is full it ends.

        Args:
            cost: added to while they come.

        Raises `EngineUnavailable`.
        """
