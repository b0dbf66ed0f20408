"""Dead engines are started again, one at a time, until that proves useless.

One that runs elsewhere is waited for. Knows: when an engine is started again and when to give up.
Does not know: how an engine is started, what is served from it, HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time

from server.config import ServerSettings
from server.core import EngineUnavailable, NudgeError
from server.serving.engines import Engines, Progress

log = logging.getLogger("nudge")

POLL_S = 0.1
"""How often the engines are looked at. Their answers and requests don't wait for that: they fail
when the engine does."""

BACKOFF_LIMIT_S = 60.0

STEADY_S = 300.0
"""An engine that lived this long had been started well: its attempts are counted anew."""


class GaveUp(NudgeError):
    """An engine could not be kept alive; the message says which."""


async def supervise(
    engines: Engines,
    settings: ServerSettings,
    progress: Progress,
    *,
    poll_s: float = POLL_S,
    steady_s: float = STEADY_S,
) -> None:
    """Keep engines that were started alive. Runs until it is cancelled.

    Args:
        settings: how often, and after which pause, a dead one is started again.
        progress: is told of each start, as at the first one.
        poll_s, steady_s: see `POLL_S`, `STEADY_S`.

    Raises:
        GaveUp: ``server.restart_limit`` attempts running did not help.
    """
    # Two engines that start together disturb each other's memory profiling.
    starting = asyncio.Lock()

    async def keep(name: str) -> None:
        limit = settings.restart_limit
        attempts = 0
        while True:
            since = time.monotonic()
            while engines.lives(name):  # noqa: ASYNC110  engines have no event to wait for
                await asyncio.sleep(poll_s)
            log.error("%s", await _obituary(engines, name))
            if engines[name].info.elsewhere:
                while not engines.lives(name):  # noqa: ASYNC110
                    await asyncio.sleep(poll_s)
                continue
            if time.monotonic() - since >= steady_s:
                attempts = 0
            while not engines.lives(name):
                if attempts == limit:
                    raise GaveUp(
                        f"engine {name!r} is dead, and starting it again did not help "
                        f"({limit} attempts); the server ends"
                    )
                await asyncio.sleep(_pause(attempts, settings.restart_backoff_s))
                attempts += 1
                async with starting:
                    log.warning("starting engine %r again (%d of %d)", name, attempts, limit)
                    await _attempt(engines, name, progress)

    keepers = [asyncio.create_task(keep(name)) for name in engines.names]
    try:
        await asyncio.gather(*keepers)
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)


async def _attempt(engines: Engines, name: str, progress: Progress) -> None:
    try:
        await engines.restart(name, progress)
    except NudgeError as error:
        log.error("%s", error)
    except Exception:
        log.exception("engine %r could not be started again", name)


async def _obituary(engines: Engines, name: str) -> str:
    try:
        await engines[name].check_health()
    except EngineUnavailable as error:
        return str(error)
    return f"engine {name!r} died"


def _pause(attempts: int, backoff_s: float) -> float:
    """Seconds before the next attempt: none before the first, then the back-off, doubled."""
    doubled = 2.0 ** min(attempts - 1, 32)  # a limit on attempts can be any number
    return min(BACKOFF_LIMIT_S, backoff_s * doubled) if attempts else 0.0
