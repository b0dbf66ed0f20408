"""Speculation in the base engine: the same turns as without, in fewer forward passes.

Only the V2 model runner gives processors a row for each draft: ``scripts/test --mode v2``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from server.engines.base import ABILITIES, TurnParams
from server.engines.vllm.engine import VllmEngine
from server.serving.registry import Registry
from tests.conftest import DEMO
from tests.contract.conftest import GREEDY, PLACES, PROMPTS, ids, opened, run
from tests.modes import runs_v2

pytestmark = pytest.mark.skipif(not runs_v2(), reason="V1 takes no processor beside speculation")

ARGS = {
    "model": str(DEMO / "base"),
    "dtype": "float32",
    "max_model_len": 512,
    "kv_cache_memory_bytes": 2**27,
    "max_num_seqs": 64,
}
DRAFTERS = {
    # The best of drafters, and no faster.
    "itself": {"method": "draft_model", "model": str(DEMO / "base"), "num_speculative_tokens": 3},
    "small": {
        "method": "draft_model",
        "model": str(DEMO / "untuned"),
        "num_speculative_tokens": 4,
    },
    "ngram": {
        "method": "ngram_gpu",
        "num_speculative_tokens": 3,
        "prompt_lookup_min": 1,
        "prompt_lookup_max": 3,
    },
}
GAMMAS = (0.2, 0.6, 0.9)
ASKED = (
    "Question: What is the capital of {}?\nAnswer:",
    "Question: Which currency do people use in {}?\nAnswer: Well,",
    "{} is a country. The capital of {} is a city. {} has a language.",
    "Question: Tell me the capital of {}.\nAnswer: Sure.\n\nQuestion: And its language?\nAnswer:",
)
SEVERAL = 1 if not os.environ.get("NUDGE_TEST_MORE") else len(PLACES)
"""Places that are asked about: more than CI can wait for, where they are wanted."""
MANY = [*PROMPTS, *(asked.replace("{}", each) for asked in ASKED for each in PLACES[:SEVERAL])]


@pytest.fixture(scope="module", params=DRAFTERS)
async def speculating(request: pytest.FixtureRequest) -> AsyncIterator[VllmEngine]:
    args = {**ARGS, "speculative_config": DRAFTERS[request.param]}
    engine = await VllmEngine.start("base", args, silence_s=300)
    yield engine
    await engine.aclose()


async def test_turns_end_where_they_would_and_take_fewer_passes(
    registry: Registry, speculating: VllmEngine, request: pytest.FixtureRequest
):
    """All at once: each turn is as if it were alone."""
    plain = registry.engines["base"]

    async def compared(prompt: str, gamma: float) -> tuple[int, int]:
        """Steps with and without."""
        one, other = opened(plain, prompt), opened(speculating, prompt)
        async with aclosing(one), aclosing(other):
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
            return other.steps, one.steps

    for gamma in GAMMAS:
        found = await asyncio.gather(*(compared(prompt, gamma) for prompt in MANY))
        steps, written = map(sum, zip(*found, strict=True))
        assert steps < written
        if gamma < 0.5 and request.node.callspec.id == "itself":
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
