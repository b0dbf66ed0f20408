"""An engine with both models of a pair, of two engines that play distributions.

What stands is decided by the rule in plain Python (`scripts.benchmark.acceptance`).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from scripts.benchmark.acceptance import Answer
from server.core import TokenIds
from server.engines.base import EngineInfo, Session, Token
from server.engines.fused import Asked, Cost, Position
from server.engines.scripted import ScriptedEngine


@dataclass
class PlayedTogether:
    """See `server.engines.fused.FusedEngine`.

    drafted: tokens of a draft. prompt, drafting: ids of the prompts of the one answer that is asked
    about. breaks: how often it leaves off, of a hundred steps. asked: how often it was.
    """

    base: ScriptedEngine
    other: ScriptedEngine
    drafted: int
    prompt: int
    drafting: int = 0
    longer: int = -1
    breaks: int = 0
    asked: int = 0
    running: int = 0
    draws: random.Random = field(default_factory=lambda: random.Random(7))
    alive: bool = True

    @property
    def info(self) -> EngineInfo:
        return self.base.info

    @property
    def aligned(self) -> EngineInfo:
        return self.other.info

    def open(self, prompt: TokenIds) -> Session:
        session = self.base.open(prompt[: self.prompt])
        session._output += prompt[self.prompt :]  # noise is of what comes behind the prompt
        return session

    async def check_health(self) -> None: ...

    async def aclose(self) -> None: ...

    def _says(self, engine: ScriptedEngine, ids: TokenIds, prompt: int) -> tuple[int, float]:
        token, probability = engine.distribution(ids[:prompt], ids[prompt:])[0]
        return token, math.log(probability) if probability else -math.inf

    async def positions(self, ids: TokenIds, asked: Asked, cost: Cost) -> AsyncGenerator[Position]:
        assert len(ids) > 1
        assert asked.most > 0
        assert asked.drafting is None or self.longer >= len(asked.drafting) - len(ids)
        self.asked += 1
        self.running += 1
        try:
            async for position in self._positions(list(ids), asked, cost):
                yield position
        finally:
            self.running -= 1

    async def _positions(self, ids: TokenIds, asked: Asked, cost: Cost) -> AsyncGenerator[Position]:
        context, answer = self.info.context_length, Answer.begun(self, asked)
        drafting = ids.copy() if asked.drafting is None else list(asked.drafting)
        own_prompt = self.prompt if asked.drafting is None else self.drafting
        left = min(asked.most, context - max(len(ids), len(drafting)))
        cost.prefilled += len(ids)
        while left > 0:
            await asyncio.sleep(0)
            cost.passes += 1
            cost.drafts += self.drafted
            if self.draws.randrange(100) < self.breaks:
                return
            drafts: list[tuple[int, float]] = []
            for _ in range(self.drafted):
                before = [*drafting, *(token for token, _ in drafts)]
                drafts.append(self._says(self.other, before, own_prompt))
            drafted = [token for token, _ in drafts]
            rows = [
                self._says(self.base, [*ids, *drafted[:at]], self.prompt)
                for at in range(len(drafted) + 1)
            ]
            for place, token in enumerate(answer.step(rows, drafted, context - len(ids))):
                yield Position(
                    token,
                    Token(*rows[place], (rows[place],)),
                    Token(*drafts[place], (drafts[place],)) if place < self.drafted else None,
                )
                ids.append(token)
                drafting.append(token)
                left -= 1
                if left <= 0 or token in (*self.aligned.stop_ids, *asked.stops):
                    return
