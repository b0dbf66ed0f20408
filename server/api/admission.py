"""How much is answered at once: a bounded queue, a time limit, and the end of both at shutdown.

Knows: weights, keys and time. Does not know: what an answer is, who writes it, HTTP but for
the errors that it raises.

The rules:
 1. A request weighs as many answers as it asks for. At most ``max_running`` are written at once
    and at most ``max_waiting`` wait; who comes beyond that is refused, at once.
 2. First come, first served among those of one priority, and a lower number before a higher
    one. Nobody else overtakes, so a request for many answers gets its turn.
 3. A place is given back exactly once, when the request's answers are written, have failed or
    were given up, whatever their reader does: `server.api.respond.Writing` sees to it.
 4. Each request has an end, counted from its arrival. Waiting is part of it.
 5. A gate that drains takes in nobody new. Who is in, waiting ones too, may finish until the
    gate is cleared.
Nothing here happens per token.
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from server.api import errors
from server.api.errors import ApiError
from server.config import ServerSettings

CLEAR_S = 3.0
"""How long an answer may take to notice that it is over."""


class Gate:
    """Lets requests through in the order of their arrival.

    Attributes:
        running, waiting: answers.
        draining: whether nobody new is let in.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.running = 0
        self.waiting = 0
        self.draining = False
        self._in: set[Ticket] = set()
        self._queue: list[Ticket] = []  # in the order of their turns
        self._of_key: Counter[str] = Counter()
        self._changed = asyncio.Event()

    @property
    def requests(self) -> int:
        """Requests that are running or waiting."""
        return len(self._in)

    def check(self, weight: int, key: str | None = None, priority: int = 0) -> None:
        """Whether a request would get a ticket now. Raises `ApiError` (429, 503)."""
        settings = self._settings
        if self.draining:
            raise errors.shutting_down()
        if key is not None and settings.max_per_key is not None:
            mine = self._of_key[key]
            if mine + weight > settings.max_per_key:
                raise errors.too_many(
                    f"this key has {mine} answers running or waiting and may have "
                    f"{settings.max_per_key}; come back when one is finished",
                    "too_many_for_key",
                )
        if not self._free_for(weight, priority) and self.waiting + weight > settings.max_waiting:
            raise errors.too_many(
                f"{self.running} answers are being written and {self.waiting} wait, which is as "
                "many as may; come back later",
                "queue_full",
            )

    def ticket(self, weight: int, key: str | None, arrived: float, priority: int = 0) -> Ticket:
        """A place inside or in the queue, to be given back with `Ticket.leave`.

        Args:
            weight: answers the request asks for; ``max_running`` at most.
            key: the caller's name, for ``max_per_key``.
            arrived: when, in the event loop's time.
            priority: of those that wait, the lowest comes first.

        Raises `ApiError` (429, 503).
        """
        self.check(weight, key, priority)
        ends = arrived + self._settings.request_timeout_s
        ticket = Ticket(self, weight, key, ends, priority)
        self._in.add(ticket)
        if key is not None:
            self._of_key[key] += weight
        if self._free_for(weight, priority):
            self._admit(ticket)
        else:
            insort(self._queue, ticket, key=lambda each: each.priority)  # behind its equals
            self.waiting += weight
        return ticket

    async def drain(self, within_s: float) -> None:
        """Let nobody in any more; returns when all have left. Those who haven't after
        ``within_s`` are told to (`clear`)."""
        self.draining = True
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._until_empty()
        self.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLEAR_S):
                await self._until_empty()

    def clear(self) -> None:
        """End every request, running or waiting, with ``shutting_down``."""
        self.draining = True
        for ticket in self._in:
            ticket._end_now(errors.shutting_down())

    async def _until_empty(self) -> None:
        while self._in:
            self._changed.clear()
            await self._changed.wait()

    def _free_for(self, weight: int, priority: int) -> bool:
        first = not self._queue or priority < self._queue[0].priority
        return first and self.running + weight <= self._settings.max_running

    def _admit(self, ticket: Ticket) -> None:
        self.running += ticket.weight
        ticket._turn.set()

    def _leave(self, ticket: Ticket) -> None:
        if ticket not in self._in:
            return
        self._in.remove(ticket)
        if ticket in self._queue:
            self._queue.remove(ticket)
            self.waiting -= ticket.weight
        else:
            self.running -= ticket.weight
        if ticket.key is not None:
            self._of_key[ticket.key] -= ticket.weight
            if not self._of_key[ticket.key]:
                del self._of_key[ticket.key]
        while self._queue:
            first = self._queue[0]
            if self.running + first.weight > self._settings.max_running:
                break
            del self._queue[0]
            self.waiting -= first.weight
            self._admit(first)
        self._changed.set()


class Ticket:
    """One request's place. Made by `Gate.ticket`."""

    def __init__(
        self, gate: Gate, weight: int, key: str | None, ends: float, priority: int = 0
    ) -> None:
        self.weight = weight
        self.key = key
        self.priority = priority
        self._gate = gate
        self._ends = ends
        self._late: ApiError = errors.timed_out(gate._settings.request_timeout_s)
        self._turn = asyncio.Event()
        self._timeout: asyncio.Timeout | None = None

    async def turn(self) -> None:
        """Returns when the request may run."""
        await self._turn.wait()

    def leave(self) -> None:
        """Give the place back, from the queue or from inside; the second time does nothing."""
        self._gate._leave(self)

    @asynccontextmanager
    async def limit(self) -> AsyncGenerator[None]:
        """A stretch of the request's work, ended in time. One at a time, and entered and left
        in one task, which is cancelled inside where the time is up.

        Raises `ApiError` (504; 503 where the gate was cleared).
        """
        try:
            async with asyncio.timeout_at(self._ends) as self._timeout:
                yield
        except TimeoutError:
            if self._timeout is not None and self._timeout.expired():
                raise self._late from None
            raise
        finally:
            self._timeout = None

    def _end_now(self, why: ApiError) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._ends:
            self._ends, self._late = now, why
            if self._timeout is not None and not self._timeout.expired():
                self._timeout.reschedule(now)
