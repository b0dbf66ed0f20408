"""Engines of random weights for the parts, and what a step of one takes.

Knows: sizes, the server's own engines and sessions. Does not know: what a part compares.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from scripts.benchmark import pairs
from scripts.gpu.parts import RATIO, SIZE, STEPS, cache_bytes
from server.core import SamplingParams
from server.engines.base import TurnParams, collect
from server.engines.vllm.account import account
from server.engines.vllm.engine import VllmEngine

ROWS = (1, 16, 64)
GREEDY = SamplingParams(temperature=0)


def size() -> tuple[int, int]:
    """The base model's width and layers."""
    width, layers = map(int, os.environ[SIZE].split())
    return width, layers


def count() -> int:
    """Steps of a measurement; fewer where it is only to be seen to work."""
    return int(os.environ.get(STEPS, "200"))


def rows() -> tuple[int, ...]:
    """At once; one and two where the steps are interpreted."""
    return ROWS if count() >= 10 else (1, 2)


async def start(folder: Path, name: str, **args: Any) -> VllmEngine:
    """The base or aligned model, which is made in the folder if it isn't there."""
    width, layers = size()
    if not (folder / name).exists():
        pairs.random(folder, width, layers, RATIO, dtype="bfloat16")
    own: dict[str, Any] = {
        "model": str(folder / name),
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "max_num_seqs": pairs.AT_ONCE,
        "kv_cache_memory_bytes": cache_bytes(width, layers),
    }
    return await VllmEngine.start(name, own | args)


def told(engine: VllmEngine) -> str:
    """How it runs."""
    return account(engine._core.llm.vllm_config)


@asynccontextmanager
async def pair(folder: Path, **base_args: Any) -> AsyncIterator[tuple[VllmEngine, VllmEngine]]:
    """Both, such that their answers' requests may be kept."""
    own = pairs.keeping()
    base = await start(folder, "base", **own, **base_args)
    try:
        aligned = await start(folder, "aligned", **own)
        try:
            yield base, aligned
        finally:
            await aligned.aclose()
    finally:
        await base.aclose()


def prompt(row: int) -> list[int]:
    return [5 + row, 7, 11]


async def step_ms(engine: VllmEngine, at_once: int, steps: int, **ends: Any) -> float:
    """The median of three, of a batch of so many rows."""
    params = TurnParams(GREEDY, max_tokens=steps, **{"top": 1, **ends})

    async def one(row: int) -> int:
        session = engine.open(prompt(row))
        await collect(session, params)
        taken: int = session.steps
        await session.aclose()
        return taken

    found = []
    for _ in range(3):
        began = time.perf_counter()
        taken = await asyncio.gather(*(one(row) for row in range(at_once)))
        found.append(1000 * (time.perf_counter() - began) / max(taken))
    return statistics.median(found)
