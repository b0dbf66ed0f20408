"""Part ``one-engine``: a pair in one engine, beside its two and the base model alone.

The models are the demo pair, trained, so that drafts agree as often as such models do; further
weights that change nothing make a step of the base model as long as a large model's. The answers
are the server's own. Greedy texts of 16-bit weights aren't the same in every batch, so how many are
those of the two engines is told beside the speeds.

Knows: the registry, what is compared. Does not know: how it is shown.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.benchmark import pairs
from scripts.benchmark.measure import BASE, Run, System, compared, prompts, run
from scripts.benchmark.report import Row
from scripts.gpu import engines
from server.config import Settings
from server.core import AnswerRequest, Message, NudgingConfig, SamplingParams
from server.decoding.stream import whole
from server.engines.vllm.engine import VllmEngine
from server.serving.registry import Registry

GAMMA = 0.4
DRAFTED = 4
HIDDEN = 256
"""Size of the demo's base model."""

REPEATS = 3
TWO = System("two engines", resumable=True)
ONE = System("one engine", served="one")


def _pair(folder: Path) -> tuple[pairs.Pair, Settings]:
    """The pair, and its settings with an engine of both."""
    width, layers = engines.size()
    wide = 16 * width**2 // (3 * HIDDEN) // 64 * 64  # as many weights as the random base model's
    keeps = {"kv_cache_memory_bytes": 2**30, "max_model_len": 512, "dtype": "bfloat16"}
    pair = pairs.deepened(folder, max(5, layers), wide, **keeps)
    told = pair.settings.model_dump(exclude_unset=True)
    told["engines"]["both"] = {
        **told["engines"]["base"],
        "drafter": told["engines"]["aligned"]["model"],
        "draft_tokens": DRAFTED,
    }
    one = {**told["models"]["pair"], "fused": "both", "mode": "fused"}
    told["models"]["one"] = one
    return pair, Settings(**told)


async def measure() -> dict[str, Any]:
    repeats = REPEATS if engines.count() >= 10 else 1
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        pair, settings = _pair(Path(folder))
        registry = Registry(settings)
        await registry.start()
        try:
            length = 0
            for streams in engines.rows():
                asked = prompts(max(2 * streams, 8) if engines.count() >= 10 else streams)
                runs: dict[System, list[Run]] = {TWO: [], ONE: [], BASE: []}
                for _ in range(1 + repeats):  # once in vain: a batch of a size may be compiled for
                    for system, mine in runs.items():
                        most = length if system is BASE else pair.max_tokens
                        done = await run(registry, pair, system, GAMMA, asked, streams, most)
                        mine.append(done)
                        if system is TWO:
                            length = round(done.tokens / done.answers)
                kept = {system: mine[1:] for system, mine in runs.items()}
                share = kept[TWO][0].usage.nudged_share
                rows += compared("one engine", share, GAMMA, streams, kept)
            same, of = await _same(registry, prompts(32 if engines.count() >= 10 else 2))
            about = {
                name: engines.told(engine)
                for name, engine in registry.engines.items()
                if isinstance(engine, VllmEngine)
            }
        finally:
            await registry.aclose()
    return {
        "pair": pair.about,
        "gamma": GAMMA,
        "drafted": DRAFTED,
        "same": [same, of],
        "engines": about,
        "rows": [asdict(each) for each in rows],
    }


async def _same(registry: Registry, asked: list[str]) -> tuple[int, int]:
    """Of so many answers, one at a time, those with one text by either."""
    request, same = AnswerRequest(SamplingParams(temperature=0), max_tokens=64), 0
    config = NudgingConfig(gamma=GAMMA)
    for question in asked:
        texts = []
        for name in ("pair", "one"):
            served = registry.resolve(name)
            prompt = registry.prompts(served, [Message("user", question)])
            pieces, _ = await whole(registry.writer(served, prompt, request, config), request)
            texts.append("".join(each.text for each in pieces))
        same += texts[0] == texts[1]
    return same, len(asked)
