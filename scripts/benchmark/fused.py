"""What nudging as speculation would cost (``--fused``): forward passes, counted with two engines.

A step of an engine with both models (`server.engines.fused`) is played by the two: the aligned
model drafts, the base model checks the draft, and the rule says what stands. So the answers are
real, and as many passes would be needed inside one engine, with any prompts. How long a pass would
take is projected from steps that are timed here.

Knows: sessions, the rule. Does not know: vLLM's insides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from scripts.benchmark.acceptance import Answer
from scripts.benchmark.measure import prompts
from scripts.benchmark.pairs import Pair
from server.core import (
    AnswerRequest,
    Message,
    NudgingConfig,
    SamplingParams,
    TokenIds,
)
from server.decoding.nudged import Nudged
from server.decoding.speculation.fused import Fused
from server.decoding.stream import whole
from server.engines.base import Engine, EngineInfo, Session, TurnParams, collect
from server.engines.fused import Asked, Cost, Position
from server.serving.registry import Registry

GREEDY = SamplingParams(temperature=0)
HEADER = "| pair | drafted | nudged | passes a token | tokens a pass | as timed here | by weights |"


@dataclass
class PlayedByTwo:
    """See `server.engines.fused.FusedEngine`. drafted: tokens of a draft."""

    base: Engine
    other: Engine
    drafted: int
    longer: int = 2**31

    @property
    def info(self) -> EngineInfo:
        return self.base.info

    @property
    def aligned(self) -> EngineInfo:
        return self.other.info

    @property
    def alive(self) -> bool:
        return self.base.alive and self.other.alive

    @property
    def running(self) -> int:
        return self.base.running

    def open(self, prompt: TokenIds) -> Session:
        return self.base.open(prompt)

    async def check_health(self) -> None:
        await self.base.check_health()

    async def aclose(self) -> None:
        """The two are others'."""

    async def positions(self, ids: TokenIds, asked: Asked, cost: Cost) -> AsyncGenerator[Position]:
        answer, stops = Answer.begun(self, asked), (*self.aligned.stop_ids, *asked.stops)
        room = min(self.info.context_length, self.aligned.context_length)
        cost.passes += 1  # which reads the context
        left = asked.most
        async with (
            aclosing(self.base.open(ids)) as base,
            aclosing(self.other.open(list(asked.drafting or ids))) as aligned,
        ):
            while left > 0 and max(base.length, aligned.length) + self.drafted < room:
                drafts, end = await collect(aligned, TurnParams(GREEDY, self.drafted))
                taken = len(drafts)
                if end.rejected is not None:
                    drafts = [*drafts, end.rejected]
                checked = await base.check([each.id for each in drafts], 1)
                cost.passes += 1
                cost.drafts += self.drafted
                rows = [(each.id, each.logprob) for each in checked]
                added = answer.step(rows, [each.id for each in drafts], len(checked))
                await aligned.extend(added, drop=taken)
                await base.extend(added)
                for place, token in enumerate(added):
                    aligned_token = drafts[place] if place < len(drafts) else None
                    yield Position(token, checked[place], aligned_token)
                    left -= 1
                    if left <= 0 or token in stops:
                        return


async def rows(
    registry: Registry, pair: Pair, gamma: float, drafts: Sequence[int], ratio: int
) -> list[str]:
    """Lines of the table.

    Args:
        drafts: tokens of a draft, of each line. ratio: of the time of a base model's step over one
            of the aligned model's, where weights are all that a step waits for.
    """
    engines = registry.engines["base"], registry.engines["aligned"]
    served, config = registry.resolve("pair"), NudgingConfig(gamma=gamma)
    request = AnswerRequest(GREEDY, max_tokens=pair.max_tokens)
    asked = [registry.prompts(served, [Message("user", each)]) for each in prompts(16)]
    two = [await whole(Nudged(*engines, each, request, config), request) for each in asked]
    lines = []
    for drafted in drafts:
        together = PlayedByTwo(*engines, drafted)
        one = [await whole(Fused(together, each, request, config), request) for each in asked]
        same = sum(
            [each.text for each in mine] == [each.text for each in its]
            for (mine, _), (its, _) in zip(one, two, strict=True)
        )
        if same < len(asked):
            raise RuntimeError(f"{len(asked) - same} of {len(asked)} answers are other ones")
        usage = [end.usage for _, end in one]
        tokens = sum(each.completion_tokens for each in usage)
        passes = sum(each.base_steps for each in usage)
        nudged = sum(each.aligned_tokens for each in usage)
        step, check, draft = await timed(*engines, drafted)
        here = tokens / passes * step / (check + drafted * draft)
        bound = tokens / passes / (1 + drafted / ratio)
        lines.append(
            f"| {pair.name} | {drafted} | {nudged / tokens:.0%} | {passes / tokens:.2f} | "
            f"{tokens / passes:.2f} | {here:.2f} | {bound:.2f} |"
        )
    return lines


async def timed(base: Engine, aligned: Engine, drafted: int) -> tuple[float, float, float]:
    """Seconds of a step of the base model, of a check of its, and of a step of the aligned one."""
    prompt = base.info.tokenizer.encode_prompt("Question: What is the capital of Galicor?\nAnswer:")

    async def of_step(engine: Engine) -> float:
        async with aclosing(engine.open(prompt)) as session:
            await collect(session, TurnParams(GREEDY, 1, stop_below=0.0, top=1))
            began = time.perf_counter()
            tokens, _ = await collect(session, TurnParams(GREEDY, 32, stop_below=0.0, top=1))
            return (time.perf_counter() - began) / max(1, len(tokens))

    async def of_check() -> float:
        async with aclosing(base.open(prompt)) as session:
            await session.check([], 1)
            began = time.perf_counter()
            await session.check(prompt[2 : 2 + drafted], 1)
            return time.perf_counter() - began

    checks = [await of_check() for _ in range(5)]
    steps = [(await of_step(base), await of_step(aligned)) for _ in range(5)]
    own, other = (statistics.median(each) for each in zip(*steps, strict=True))
    return own, statistics.median(checks), other
