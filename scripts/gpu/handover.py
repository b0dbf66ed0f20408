"""Part ``handover``: from one model's last token to the other's first, beside plain steps.

Both engines write in turn, through the server's own sessions and stops: the base model until p1 is
under γ, the aligned model a word. Three times of each hand-over are kept, in milliseconds:

    last    from the last token of a turn to the first that comes of the other model
    end     from the turn's end, which is a step later: the position at which it stopped
    gap     from a token of a turn to its next one: a step, as it is while all this runs

Without any cost of its own a hand-over would take a step of the one, in which it stops, and a step
of the other: what ``last`` is above those is what handing over costs.

Knows: sessions, clocks. Does not know: the policy, how it is shown.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.gpu import engines
from server.core import TokenIds
from server.engines.base import Engine, Session, Token, TurnEnd, TurnParams, collect
from server.engines.vllm.engine import VllmEngine

UNCERTAIN = 0.3
"""Of the base model's positions."""

LONGEST = 16
"""Tokens of a turn."""

Stamps = tuple[float | None, float]
"""When a turn's last token came, if it wrote any, and when its end."""


@dataclass
class Times:
    """Of the turns of one model, in seconds: the hand-overs are those to it."""

    last: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)

    def shown(self) -> dict[str, float]:
        found: dict[str, float] = {"handovers": len(self.end)}
        for name in ("last", "end", "gap"):
            if took := sorted(getattr(self, name)):
                found[f"{name}_ms"] = 1e3 * statistics.median(took)
                found[f"{name}_p90_ms"] = 1e3 * took[int(len(took) * 0.9)]
        return found


async def measure() -> dict[str, Any]:
    count = engines.count()
    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with engines.pair(Path(folder)) as (base, aligned):
            gamma = await _gamma(base, max(8, count // 4))
            for streams in engines.rows():
                to = Times(), Times()
                given = gamma, max(2, count // 10), to
                await asyncio.gather(*(answer((base, aligned), n, *given) for n in range(streams)))
                base_ms, aligned_ms = [
                    await engines.step_ms(each, streams, count, stop_below=0.0)
                    for each in (base, aligned)
                ]
                table[str(streams)] = {
                    "to_base": to[0].shown(),
                    "to_aligned": to[1].shown(),
                    "base_step_ms": base_ms,
                    "aligned_step_ms": aligned_ms,
                }
            about = {"base": engines.told(base), "aligned": engines.told(aligned)}
    return {"engines": about, "gamma": gamma, "streams": table}


async def _gamma(base: VllmEngine, tokens: int) -> float:
    """Under which p1 is at about so many positions."""
    params = TurnParams(engines.GREEDY, max_tokens=tokens, stop_below=0.0)
    found = []
    for row in range(8):
        async with aclosing(base.open(engines.prompt(row))) as session:
            found += [each.top_prob for each in (await collect(session, params))[0]]
    return sorted(found)[int(len(found) * UNCERTAIN)]


async def answer(
    pair: tuple[Engine, Engine], row: int, gamma: float, rounds: int, to: tuple[Times, Times]
) -> None:
    """So many turns of either model; ``to``: the times of the base model's, and the aligned's."""
    sides = [each.open(engines.prompt(row)) for each in pair]
    turns = (
        TurnParams(engines.GREEDY, max_tokens=LONGEST, stop_below=gamma),
        TurnParams(engines.GREEDY, max_tokens=LONGEST, word=()),
    )
    before: Stamps | None = None
    try:
        for number in range(2 * rounds):
            side = number % 2
            ids, before = await _turn(sides[side], turns[side], to[side], before)
            await sides[1 - side].extend(ids)
    finally:
        for each in sides:
            await each.aclose()


async def _turn(
    session: Session, params: TurnParams, times: Times, before: Stamps | None
) -> tuple[TokenIds, Stamps | None]:
    """A turn: what it wrote, and when its last token and its end came.

    One that wrote nothing takes the token at which it stopped: the other must be given something.
    Nothing follows one that was cut at its length, which costs no step.

    Args:
        before: the last turn's times.
    """
    ids: TokenIds = []
    last: float | None = None
    ended: TurnEnd | None = None
    async with aclosing(session.generate(params)) as events:
        async for event in events:
            now = time.perf_counter()
            if before is not None:
                _handed_over(times, before, now)
                before = None
            if isinstance(event, Token):
                if last is not None:
                    times.gap.append(now - last)
                ids.append(event.id)
                last = now
            else:
                ended = event
    assert ended is not None
    if not ids:
        assert ended.rejected is not None
        ids = [ended.rejected.id]
        await session.extend(ids)
    return ids, None if ended.reason == "length" else (last, now)


def _handed_over(times: Times, before: Stamps, now: float) -> None:
    last, end = before
    times.end.append(now - end)
    if last is not None:
        times.last.append(now - last)
