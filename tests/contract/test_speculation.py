"""Speculation in the base engine: the same turns as without, in fewer forward passes.

Only the V2 model runner gives processors a row for each draft: ``scripts/test --mode v2``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from server.engines.base import ABILITIES, TurnParams
from server.engines.vllm.engine import VllmEngine
from server.serving.registry import Registry
from tests.conftest import DEMO
from tests.contract.conftest import GREEDY, PROMPTS, ids, opened, run
from tests.modes import runs_v2

pytestmark = pytest.mark.skipif(not runs_v2(), reason="V1 takes no processor beside speculation")

DRAFTED = 3
ARGS = {
    "model": str(DEMO / "base"),
    "dtype": "float32",
    "max_model_len": 512,
    "kv_cache_memory_bytes": 2**25,
    "max_num_seqs": 8,
    # The best of drafters, and no faster.
    "speculative_config": {
        "method": "draft_model",
        "model": str(DEMO / "base"),
        "num_speculative_tokens": DRAFTED,
    },
}


@pytest.fixture(scope="module")
async def speculating() -> AsyncIterator[VllmEngine]:
    engine = await VllmEngine.start("base", ARGS)
    yield engine
    await engine.aclose()


@pytest.mark.parametrize("gamma", [0.2, 0.6, 0.9])
async def test_turns_end_where_they_would_and_take_fewer_passes(
    registry: Registry, speculating: VllmEngine, gamma: float
):
    plain = registry.engines["base"]
    steps = written = 0
    for prompt in PROMPTS:
        one, other = opened(plain, prompt), opened(speculating, prompt)
        for _ in range(3):
            params = TurnParams(GREEDY, max_tokens=12, stop_below=gamma)
            (tokens, end), (same, also) = await run(one, params), await run(other, params)
            assert ids(same) == ids(tokens)
            assert also.reason == end.reason
            assert (also.rejected and also.rejected.id) == (end.rejected and end.rejected.id)
            for each, its in zip(tokens, same, strict=True):
                assert its.top_prob == pytest.approx(each.top_prob, abs=1e-4)
            aligned = plain.info.tokenizer.encode_text(" and so")
            await one.extend(aligned)
            await other.extend(aligned)
        assert other.length == one.length
        steps += other.steps
        written += one.steps
        await one.aclose()
        await other.aclose()
    assert steps < written
    if gamma < 0.5:
        assert steps <= 0.6 * written


async def test_a_word_ends_where_it_would(registry: Registry, speculating: VllmEngine):
    plain = registry.engines["base"]
    for prompt in PROMPTS:
        one, other = opened(plain, prompt), opened(speculating, prompt)
        for _ in range(3):
            params = TurnParams(GREEDY, max_tokens=8, word=())
            (tokens, end), (same, also) = await run(one, params), await run(other, params)
            assert (ids(same), also.reason) == (ids(tokens), end.reason)
        await one.aclose()
        await other.aclose()


async def test_what_depends_on_what_was_written_is_refused(speculating: VllmEngine):
    assert speculating.info.abilities == ABILITIES - {"adjust", "grammar"}
