"""An engine with both models of a pair, of two engines that play distributions.

It decides what stands as the rule of acceptance is written (`server.engines.vllm.fused.rule`), in
plain Python and word by word: what the tensors do is compared with this.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from server.core import TokenIds
from server.engines.base import EngineInfo, Session, Token
from server.engines.fused import Asked, Cost, Position
from server.engines.scripted import ScriptedEngine
from server.text.tokenizer import Tokenizer
from server.text.words import Part, Word

Says = Callable[[TokenIds], tuple[int, float]]
"""The likeliest token behind a context, and its log probability."""


@dataclass
class Answer:
    """One answer on its way through the rule.

    word: of the aligned model, which is open; or None.
    """

    tokenizer: Tokenizer
    gamma: float
    word: Word | None
    base_ends: tuple[int, ...]
    aligned_ends: tuple[int, ...]

    def step(
        self, base: Sequence[tuple[int, float]], drafts: Sequence[int], read: int | None = None
    ) -> list[int]:
        """The tokens that a step adds.

        Args:
            base: of each row, the likeliest token and its log probability. read: rows that the
                step has; None: all.
        """
        added: list[int] = []
        for place, (likeliest, logprob) in enumerate(base[:read]):
            draft = drafts[place] if place < len(drafts) else None
            word, self.word = self.word, None
            if word is not None and draft is None:
                self.word = word  # how it goes on isn't known here
                break
            if word is not None and draft not in self.aligned_ends:
                part = word.push(draft)
                if part is not Part.BEYOND:
                    self.word = word if part is Part.INSIDE else None
                    added.append(draft)
                    continue
            certain = logprob >= (math.log(self.gamma) if self.gamma > 0 else -math.inf)
            if certain and likeliest not in self.base_ends:
                added.append(likeliest)
                if likeliest != draft:
                    break
            elif draft is None:
                break
            else:
                begun = Word(self.tokenizer)
                self.word = begun if begun.push(draft) is Part.INSIDE else None
                added.append(draft)
        return added


@dataclass
class PlayedTogether:
    """See `server.engines.fused.FusedEngine`.

    drafted: tokens of a draft. prompt: ids of the one prompt that is asked about. breaks: how often
    it leaves off, of a hundred steps. asked: how often it was.
    """

    base: ScriptedEngine
    other: ScriptedEngine
    drafted: int
    prompt: int
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
        return self.base.open(prompt)

    async def check_health(self) -> None: ...

    async def aclose(self) -> None: ...

    def _says(self, engine: ScriptedEngine, ids: TokenIds) -> tuple[int, float]:
        token, probability = engine.distribution(ids[: self.prompt], ids[self.prompt :])[0]
        return token, math.log(probability) if probability else -math.inf

    async def positions(self, ids: TokenIds, asked: Asked, cost: Cost) -> AsyncGenerator[Position]:
        assert len(ids) > 1
        assert asked.most > 0
        self.asked += 1
        self.running += 1
        try:
            async for position in self._positions(list(ids), asked, cost):
                yield position
        finally:
            self.running -= 1

    async def _positions(self, ids: TokenIds, asked: Asked, cost: Cost) -> AsyncGenerator[Position]:
        own, context = self.info.tokenizer, self.info.context_length
        word = None if asked.word is None else Word(own, asked.word)
        answer = Answer(own, asked.gamma, word, self._base_ends, self.aligned.stop_ids)
        left = min(asked.most, context - len(ids))
        cost.prefilled += len(ids)
        while left > 0:
            await asyncio.sleep(0)
            cost.passes += 1
            cost.drafts += self.drafted
            if self.draws.randrange(100) < self.breaks:
                return
            drafts: list[tuple[int, float]] = []
            for _ in range(self.drafted):
                drafts.append(self._says(self.other, [*ids, *(token for token, _ in drafts)]))
            drafted = [token for token, _ in drafts]
            rows = [self._says(self.base, [*ids, *drafted[:at]]) for at in range(len(drafted) + 1)]
            for place, token in enumerate(answer.step(rows, drafted, context - len(ids))):
                yield Position(
                    token,
                    Token(*rows[place], (rows[place],)),
                    Token(*drafts[place], (drafts[place],)) if place < self.drafted else None,
                )
                ids.append(token)
                left -= 1
                if left <= 0 or token in (*self.aligned.stop_ids, *asked.stops):
                    return

    @property
    def _base_ends(self) -> tuple[int, ...]:
        return (*self.info.stop_ids, *self.info.tokenizer.turn_ids)
