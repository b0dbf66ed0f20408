"""The servers of one engine: which gets a turn, which is left out, and when it is let in again.

Knows: how loaded each is, how it failed lately, and how many retries there are left. Does not know:
turns, sessions' ids, HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from server.core import EngineUnavailable
from server.engines.remote import probe
from server.engines.remote.backend import RemoteSettings
from server.engines.remote.client import Client, Failed
from server.engines.remote.probe import Found, Misfit

log = logging.getLogger("nudge")

FAILURES = 3
"""Running, after which a server that fails is left out. One that is gone is so at once."""

BUDGET, EARNED = 100.0, 0.2
"""Retries that there are at most, and what each turn that went well adds to them: servers that
fail all the time don't get several times the requests for it."""

BUSY_S = 1.0
"""How long a server that can take no more is left alone, where it doesn't say."""

WAIT_S = 30.0
"""How long a turn waits at most, where every server is busy."""

MORE = 4
"""Answers that a server may have more than another, and is preferred for what it has in its cache;
half as many again, where that is more."""

Examine = Callable[[Client], Awaitable[Found]]
"""Asks a server what it is, once it is there (again). Raises `Failed`, `Misfit`."""


@dataclass(eq=False, slots=True)
class Replica:
    """found: None while it is left out. why: it is. sessions: whose turns go there. failed:
    requests so far; failures: those running. busy_until: by the loop's clock."""

    client: Client
    found: Found | None = None
    why: str = "not asked yet"
    sessions: int = 0
    failed: int = 0
    failures: int = 0
    busy_until: float = 0.0

    @property
    def name(self) -> str:
        return self.client.name


@dataclass(slots=True)
class Replicas:
    """promised: what the engine is said to be, which each of them must be."""

    name: str
    all: Sequence[Replica]
    examine: Examine
    settings: RemoteSettings
    promised: Found | None = None
    budget: float = BUDGET
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def up(self) -> list[Replica]:
        return [each for each in self.all if each.found is not None]

    def why(self) -> str:
        """None is there: why."""
        return f"engine {self.name!r} can't be reached: " + "; ".join(
            dict.fromkeys(each.why for each in self.all)
        )

    async def take(
        self, last: Replica | None, avoid: Replica | None = None, liked: Replica | None = None
    ) -> tuple[Replica, Found]:
        """The server of a session's turn: that of its last one; otherwise the least loaded one.

        Args:
            avoid: it failed just now, and is taken where there is no other. liked: has the
                conversation in its cache, and is taken before those that have little less to do.

        Raises:
            EngineUnavailable: none is there, or all are busy for too long.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT_S
        while True:
            if not self.up:
                raise EngineUnavailable(self.why())
            now = loop.time()
            free = [each for each in self.up if each.busy_until <= now]
            if free:
                others = [each for each in free if each is not avoid] or free
                best = last if last in others else min(others, key=lambda each: each.sessions)
                if best is not last and liked in others and _little_more(liked, best):
                    best = liked
                assert best is not None
                assert best.found is not None
                return best, best.found
            soonest = min(each.busy_until for each in self.up)
            if soonest > until:
                raise EngineUnavailable(f"engine {self.name!r} is busy: {self.up[0].why}")
            await asyncio.sleep(soonest - now)

    def went_well(self, replica: Replica) -> None:
        replica.failures = 0
        self.budget = min(BUDGET, self.budget + EARNED)

    def went_wrong(self, replica: Replica, failed: Failed) -> None:
        """A request to it failed."""
        replica.why = str(failed)
        replica.failed += 1
        if failed.kind == "busy":
            pause = BUSY_S if failed.after_s is None else failed.after_s
            replica.busy_until = asyncio.get_running_loop().time() + pause
            return
        replica.failures += 1
        if failed.kind != "failed" or replica.failures >= FAILURES:
            self._leave_out(replica)

    def may_retry(self) -> bool:
        """Whether there are retries left; takes one."""
        if self.budget < 1:
            return False
        self.budget -= 1
        return True

    def _leave_out(self, replica: Replica) -> None:
        if replica.found is not None:
            log.error("engine %r goes on without %s: %s", self.name, replica.name, replica.why)
            replica.found = None
            replica.client.hang_up()

    # -- health ------------------------------------------------------------------------------

    async def admit(self, replica: Replica) -> None:
        """Let it in, if it is what it should be. Raises `Failed`, `Misfit`."""
        try:
            found = await self.examine(replica.client)
            promised = self.promised or found
            if found.context < promised.context or not found.abilities >= promised.abilities:
                raise Misfit(
                    f"{replica.name} can do less than the others (context {found.context} of "
                    f"{promised.context}, stop processor {'there' if found.plugin else 'absent'})",
                    "Start it like the others",
                )
        except Misfit as misfit:
            replica.why = f"{misfit}. {misfit.advice}"
            raise
        except Failed as failed:
            replica.why = str(failed)
            raise
        self.promised = promised
        replica.found, replica.failures, replica.busy_until = found, 0, 0.0

    def watch(self) -> None:
        """From now on look after them, until `aclose`."""
        for replica in self.all:
            self._tasks += [
                asyncio.create_task(self._look_after(replica)),
                asyncio.create_task(self._listen(replica)),
            ]

    async def _look_after(self, replica: Replica) -> None:
        """Ask it now and then: whether it is still there, or there again."""
        told, heard = replica.why, 0
        while True:
            await asyncio.sleep(self.settings.health_interval_s)
            if replica.found is not None:
                try:
                    await probe.card(replica.client, self.settings)
                except Misfit as misfit:
                    replica.why = f"{misfit}. {misfit.advice}"
                    self._leave_out(replica)
                except Failed as failed:
                    # Where it wrote since the last look, it only has no time for this.
                    if failed.kind == "wrong" or replica.client.watch.heard == heard:
                        self.went_wrong(replica, failed)
                heard = replica.client.watch.heard
                continue
            with contextlib.suppress(Failed, Misfit):
                await self.admit(replica)
                log.warning("engine %r has %s again", self.name, replica.name)
            if replica.found is None and replica.why != told:
                told = replica.why
                log.error("engine %r is without %s: %s", self.name, replica.name, told)

    async def _listen(self, replica: Replica) -> None:
        """Leave it out when it has fallen silent."""
        watch = replica.client.watch
        while True:
            await asyncio.sleep(watch.look_s)
            if watch.look(watch.look_s):
                replica.why = f"{replica.name} said nothing for {watch.silent_s:.3g} s"
                watch.silent_s = 0.0
                self._leave_out(replica)

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _little_more(one: Replica, other: Replica) -> bool:
    return one.sessions <= other.sessions + max(MORE, other.sessions // 2)
