"""What is kept of answers for whoever asks for them again, in memory.

Knows: whose is what, and how much may be kept. Does not know: what is kept.

What hasn't been asked for the longest makes room, whoever's it is. Without API keys everybody is
one owner.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Generic, TypeVar

from fastapi import Request

Value = TypeVar("Value")

_Key = tuple[str | None, str]


class Store(Generic[Value]):
    """Of a server.

    Args:
        most: values; 0: none is kept. most_bytes: in all.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[_Key, tuple[Value, int]] = OrderedDict()
        self._bytes = 0

    def of(self, owner: str | None) -> Shelf[Value]:
        return Shelf(self, owner)

    def put(self, key: _Key, value: Value, size: int) -> None:
        self.drop(key)
        if size > self._most_bytes:
            return
        self._kept[key] = value, size
        self._bytes += size
        while len(self._kept) > self.most or self._bytes > self._most_bytes:
            self.drop(next(iter(self._kept)))

    def get(self, key: _Key) -> Value | None:
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def drop(self, key: _Key) -> bool:
        if key not in self._kept:
            return False
        self._bytes -= self._kept.pop(key)[1]
        return True


class Shelf(Generic[Value]):
    """One owner's part of a store; nobody else's can be reached from it."""

    def __init__(self, store: Store[Value], owner: str | None) -> None:
        self._store = store
        self._owner = owner

    @property
    def holds(self) -> bool:
        """Whether anything is kept at all."""
        return self._store.most > 0

    def put(self, name: str, value: Value, size: int) -> None:
        """``size``: bytes of it. What is larger than the whole store may be isn't kept."""
        self._store.put((self._owner, name), value, size)

    def get(self, name: str) -> Value | None:
        return self._store.get((self._owner, name))

    def drop(self, name: str) -> bool:
        """Whether it was there."""
        return self._store.drop((self._owner, name))


def shelf(request: Request) -> Shelf[Any]:
    """Of whoever asks: of a key, or of all where there are none."""
    store: Store[Any] = request.app.state.store
    return store.of(getattr(request.state, "key", None))
