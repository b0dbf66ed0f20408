"""The engines of a configuration: started one after the other, and anew where they died.

Knows: which engines there are, which of them live. Does not know: what is served from them, when a
dead one is started again, how any backend starts one.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping

from server.config import Settings
from server.core import EngineUnavailable
from server.engines import backends
from server.engines.base import Engine

Progress = Callable[[str, str, float], None]
"""Called with an engine's name, its state (loading, ready, failed) and the seconds it took."""

Starter = Callable[[str, Settings], Awaitable[Engine]]
"""Starts the engine of this name; see `start_engine`."""


class Engines(Mapping[str, Engine]):
    """Those that were started, by name. A dead one stays until another takes its place.

    names: all that there are to be. restarts: by name, how often it was started again.
    """

    def __init__(self, settings: Settings, starter: Starter | None = None) -> None:
        """``starter``: instead of `start_engine`."""
        self.names = tuple(settings.engines)
        self.restarts = dict.fromkeys(self.names, 0)
        self._settings = settings
        self._starter = starter or start_engine
        self._started: dict[str, Engine] = {}

    def __getitem__(self, name: str) -> Engine:
        return self._started[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._started)

    def __len__(self) -> int:
        return len(self._started)

    def lives(self, name: str) -> bool:
        """Whether the engine of this name is loaded and lives."""
        return name in self._started and self._started[name].alive

    def living(self, name: str) -> Engine:
        """Raises `EngineUnavailable` where it is dead."""
        if not self.lives(name):
            engine = self._started.get(name)
            elsewhere = engine is not None and engine.info.elsewhere
            what = "can't be reached" if elsewhere else "died and is being started again"
            raise EngineUnavailable(f"engine {name!r} {what}")
        return self._started[name]

    async def start(self, progress: Progress = lambda *_: None) -> None:
        """All of them, one after the other.

        Raises:
            ConfigError, EngineUnavailable: what went wrong; those that were started stay.
        """
        for name in self.names:
            self._started[name] = await self._start(name, progress)

    async def restart(self, name: str, progress: Progress = lambda *_: None) -> None:
        """Close what is left of a dead engine, and start it anew in its place.

        Raises:
            ConfigError, EngineUnavailable: it can't be started; it stays dead.
        """
        await self._started[name].aclose()
        self._started[name] = await self._start(name, progress)
        self.restarts[name] += 1
        # The dead one is in reference cycles, and its sockets stay open as long as it is.
        await asyncio.to_thread(settle)

    async def _start(self, name: str, progress: Progress) -> Engine:
        began = time.monotonic()
        progress(name, "loading", 0.0)
        try:
            engine = await self._starter(name, self._settings)
        except BaseException:
            progress(name, "failed", time.monotonic() - began)
            raise
        progress(name, "ready", time.monotonic() - began)
        return engine

    async def aclose(self) -> None:
        engines = list(self._started.values())
        self._started.clear()
        await asyncio.gather(*(engine.aclose() for engine in engines))


def settle() -> None:
    """Collect what nobody needs any more, and have the collector pass over the rest from here on: a
    million objects of the engines' libraries, which live as long as the process. (vLLM's own
    server does the same once it has started.)"""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def start_engine(name: str, settings: Settings) -> Engine:
    """By its backend. Raises `ConfigError`, `EngineUnavailable`."""
    for backend, engines in backends.grouped(settings.engines):
        if name in engines:
            return await backend.start(name, engines[name], len(engines))
    raise KeyError(name)
