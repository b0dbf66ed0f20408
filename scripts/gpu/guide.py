"""Part ``guide``: an aligned model called inside the base engine's step, beside two engines.

The one couples the batch: a step in which any answer is nudged waits, for all of them. The claim is
that sessions of two engines don't have that. Both write the same share of nudged tokens, of random
weights, by a schedule that is drawn; tokens a second are told over those of the base model alone.

What either figure leaves out. Of the guide: it isn't there; the base engine waits as long as a step
of the aligned model was measured to take in an engine of its own, with as many rows as are nudged,
so that reading what the base model wrote meanwhile is free. So is anything else on the GPU: the
figure is the most that such a guide can reach. Of two engines: a turn ends by its length, so that
the step in flight behind a forced stop isn't there where vLLM schedules asynchronously, and they
have one GPU for both, if there is one. ``bench`` has the server's own answers, stops and all.

Knows: how both are run. Does not know: how it is shown.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import vllm
from vllm.sampling_params import RequestOutputKind

from scripts.benchmark import replay
from scripts.benchmark.report import Row
from scripts.gpu import engines
from scripts.gpu.guide_processor import KEY, NAME
from scripts.gpu.schedule import spans, waits
from server.engines.vllm.engine import VllmEngine

SHARES = (0.1, 0.3)
REPEATS = 3
BASE, GUIDE, TWO = "base alone", "guide in the step", "two engines"


async def measure() -> dict[str, Any]:
    tokens = max(3, engines.count() // 2)
    repeats = REPEATS if engines.count() >= 10 else 1
    with tempfile.TemporaryDirectory() as folder:
        async with engines.pair(Path(folder), logits_processors=[NAME]) as (base, aligned):
            took = [
                (at_once, await engines.step_ms(aligned, at_once, tokens, top=0))
                for at_once in engines.rows()
            ]
            rows: list[Row] = []
            for share in SHARES:
                for streams in engines.rows():
                    schedules = [spans(tokens, share, seed) for seed in range(streams)]
                    guide = [share, took, 0]
                    # Once each in vain: a first batch of a size may be compiled for.
                    found = [
                        {
                            BASE: await _one_engine(base, streams, tokens, None),
                            GUIDE: await _one_engine(base, streams, tokens, guide),
                            TWO: await _two_engines(base, aligned, schedules),
                        }
                        for _ in range(1 + repeats)
                    ][1:]
                    rows += _rows(share, streams, found)
            about = {"base": engines.told(base), "aligned": engines.told(aligned)}
    return {
        "engines": about,
        "aligned_step_ms": {str(at_once): ms for at_once, ms in took},
        "waits": [[share, n, waits(share, n)] for share in SHARES for n in engines.rows()],
        "rows": [asdict(row) for row in rows],
    }


def _rows(share: float, streams: int, found: Sequence[dict[str, float]]) -> list[Row]:
    rows = []
    for system in found[0]:
        ratios = [each[system] / each[BASE] for each in found]
        speed = statistics.median(each[system] for each in found)
        spread = statistics.median(ratios), min(ratios), max(ratios)
        figures = {"tokens_per_s": speed}
        rows.append(Row("guide", share, 0.0, streams, system, *spread, figures))
    return rows


async def _one_engine(engine: VllmEngine, streams: int, tokens: int, guide: Any) -> float:
    """Tokens a second of plain requests, with the guide or without."""
    core = engine._core
    params = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args={KEY: guide} if guide else None,
    )

    async def one(row: int) -> None:
        given = vllm.TokensPrompt(prompt_token_ids=engines.prompt(row))
        async for _ in core.llm.generate(given, params, core.next_request_id()):
            pass

    return await _speed(tokens, [one(row) for row in range(streams)])


async def _two_engines(
    base: VllmEngine, aligned: VllmEngine, schedules: Sequence[Sequence[replay.Span]]
) -> float:
    """Tokens a second of sessions that hand over."""

    async def one(row: int, schedule: Sequence[replay.Span]) -> None:
        sides = base.open(engines.prompt(row)), aligned.open(engines.prompt(row))
        try:
            await replay.turns(*sides, schedule)
        finally:
            for side in sides:
                await side.aclose()

    tokens = sum(map(sum, schedules[0]))
    return await _speed(tokens, [one(row, each) for row, each in enumerate(schedules)])


async def _speed(tokens: int, answers: Sequence[Any]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*answers)
    return tokens * len(answers) / (time.perf_counter() - began)
