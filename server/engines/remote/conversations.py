"""Which conversation an answer goes on with: told by its prompt, where its client doesn't say.

The next turn of a conversation has a prompt that begins with the whole one of the turn before, and
the server that answered that has it in its cache. Knows: prompts of late. Does not know: whether
that server is there, or how loaded it is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from server.core import TokenIds
from server.engines.remote.replicas import Replica

KEPT = 10_000
"""Conversations of late; a server's cache holds fewer."""

_BLOCK = 32


@dataclass(frozen=True, slots=True)
class Place:
    """replica: whose cache has it. key: by which a router keeps it together."""

    replica: Replica
    key: str


@dataclass(slots=True)
class Conversations:
    _kept: OrderedDict[tuple[int, tuple[int, ...]], Place] = field(default_factory=OrderedDict)
    _begun: Counter[int] = field(default_factory=Counter)
    _named: OrderedDict[str, Place] = field(default_factory=OrderedDict)

    def keep(self, prompt: TokenIds, place: Place, named: str | None = None) -> None:
        """An answer to it was written there. ``named``: by its client, as part of what."""
        if named is not None:
            self._named[named] = place
            self._named.move_to_end(named)
            if len(self._named) > KEPT:
                self._named.popitem(last=False)
            return
        *_, (at, blocks) = _blocks(prompt)
        found = (blocks, tuple(prompt[at:]))
        if found not in self._kept:
            self._begun[blocks] += 1
        self._kept[found] = place
        self._kept.move_to_end(found)
        if len(self._kept) > KEPT:
            self._forget(next(iter(self._kept)))

    def take(self, prompt: TokenIds, named: str | None = None) -> Place | None:
        """Of what has that name; or of the longest one that it goes on with, which nobody else goes
        on with then."""
        if named is not None:
            return self._named.get(named)
        for at, blocks in reversed(list(_blocks(prompt))):
            if blocks in self._begun:
                for end in range(min(at + _BLOCK, len(prompt)) - 1, at - 1, -1):
                    found = (blocks, tuple(prompt[at:end]))
                    if found in self._kept:
                        return self._forget(found)
        return None

    def _forget(self, found: tuple[int, tuple[int, ...]]) -> Place:
        self._begun[found[0]] -= 1
        if not self._begun[found[0]]:
            del self._begun[found[0]]
        return self._kept.pop(found)


def _blocks(prompt: TokenIds) -> Iterator[tuple[int, int]]:
    """Where each whole block begins that there may be a rest behind, and a number of all before."""
    before = 0
    yield 0, before
    for at in range(_BLOCK, len(prompt) + 1, _BLOCK):
        before = hash((before, *prompt[at - _BLOCK : at]))
        yield at, before
