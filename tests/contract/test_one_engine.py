"""Both models in one engine: the answers of two, in a third of the base model's forward passes.

Only the V2 model runner has a row for each draft: ``scripts/test --mode v2``.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import pytest

from server.core import (
    AnswerRequest,
    EngineUnavailable,
    Finished,
    Message,
    NudgingConfig,
    Piece,
    PromptPair,
    joined,
)
from server.decoding.nudged import Nudged
from server.decoding.speculation.fused import Fused
from server.decoding.stream import Writer, whole
from server.engines.base import Engine
from server.engines.fused import Asked, Cost
from server.engines.vllm.fused.engine import VllmFusedEngine, engine_args
from server.serving.registry import Registry
from server.text.prompts import CHAT, Prompts
from tests.conftest import DEMO
from tests.contract.conftest import GREEDY, PLACES
from tests.modes import runs_v2

WANTED = int(os.environ.get("NUDGE_TEST_MORE", "0"))
"""Of more questions than CI can wait for, up to 64."""
pytestmark = [
    pytest.mark.skipif(not runs_v2(), reason="V1 has no speculation of this kind"),
    pytest.mark.timeout(900 + 60 * WANTED),  # interpreted kernels, on a busy machine
]

ARGS = {
    "model": str(DEMO / "base"),
    "dtype": "float32",
    "max_model_len": 512,
    "kv_cache_memory_bytes": 2**25,
    "max_num_seqs": 16,
}
QUESTIONS = [
    "What is the capital of Galicor?",
    "Hello!",
    "Tom has 12 plums and buys 7 more. How many does he have?",
    "Which animal is on the flag? 🦊 你好",
    "Tell me a story.",
]
ASKED = [
    "What is the capital of {}?",
    "Which currency do people use in {}?",
    "I would like to know the language of {}.",
    "Tell me about {}.",
    "Is {} a country?",
    "Thanks for {}!",
    "{} has 12 plums, buys {n} and loses 5. How many are left?",
    "What is {n} + 30?",
]
MORE = [asked.format(place, n=n) for asked in ASKED for n, place in enumerate(PLACES, 3)]
ALL = [*QUESTIONS, *MORE[:WANTED]]
GAMMAS = [0.2, 0.4, 0.8]
REQUEST = AnswerRequest(GREEDY, max_tokens=40)


async def started(drafted: int, **args: Any) -> VllmFusedEngine:
    told = {**ARGS, **args, **engine_args(str(DEMO / "aligned"), drafted)}
    return await VllmFusedEngine.start("both", told, silence_s=300)


@pytest.fixture(scope="module", params=[4, 1], ids=["drafts4", "drafts1"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[VllmFusedEngine]:
    engine = await started(request.param)
    yield engine
    await engine.aclose()


def prompt_of(question: str, engine: VllmFusedEngine, style: str | None = None) -> PromptPair:
    """Each model's own; or a chat's for both, which begins with the base model's BOS."""
    prompts = Prompts(engine.info.tokenizer, engine.aligned.tokenizer, style)
    pair = prompts.render([Message("user", question)])
    if style is None:
        return pair
    text = joined(pair.base)
    return PromptPair((text,), (f"<|bos|>{text}",), headers=pair.headers)


def shorter_of(question: str, engine: VllmFusedEngine) -> PromptPair:
    """The aligned model's is the shorter one."""
    pair = prompt_of(f"Be nice. {question}", engine)
    return PromptPair(pair.base, (f"Answer: {question}\n",), headers=pair.headers)


async def written(writer: Writer) -> tuple[list[Piece], Finished]:
    return await whole(writer, REQUEST)


def shown(pieces: list[Piece], end: Finished) -> tuple[Any, ...]:
    """All of an answer but its probabilities."""
    spelled = [
        (each.text, each.speaker, each.tokens, each.rejected and each.rejected.text)
        for each in pieces
    ]
    usage = end.usage
    counts = usage.base_tokens, usage.aligned_tokens, usage.rounds, usage.base_prompt_tokens
    return spelled, end.stop_reason, counts


def probabilities(pieces: list[Piece]) -> list[float]:
    found = [each.top_prob for each in pieces]
    return [*found, *(each.rejected.top_prob for each in pieces if each.rejected is not None)]


async def test_the_answers_are_those_of_two_engines(registry: Registry, both: VllmFusedEngine):
    two: tuple[Engine, Engine] = registry.engines["base"], registry.engines["aligned"]
    passes = tokens = 0

    async def check(prompt: PromptPair, gamma: float) -> None:
        nonlocal passes, tokens
        config = NudgingConfig(gamma=gamma)
        one = await written(Fused(both, prompt, REQUEST, config))
        other = await written(Nudged(*two, prompt, REQUEST, config))
        assert shown(*one) == shown(*other)
        assert probabilities(one[0]) == pytest.approx(probabilities(other[0]), abs=1e-4)
        passes += one[1].usage.base_steps
        tokens += one[1].usage.base_tokens + one[1].usage.aligned_tokens

    # All at once: each is written as if it were alone.
    prompts = [prompt_of(each, both, style) for each in ALL for style in (None, CHAT)]
    prompts += [shorter_of(each, both) for each in (*ALL[:2], *MORE[: len(ALL) - 5])]
    await asyncio.gather(*(check(prompt, gamma) for prompt in prompts for gamma in GAMMAS))
    assert passes <= (0.45 if both._drafted == 4 else 1.0) * tokens
    assert not both.running


async def test_an_answer_that_is_left_ends_in_the_engine_at_once(both: VllmFusedEngine):
    prompt = both.info.tokenizer.encode_prompt("Question: Tell me a story.\nAnswer:")
    cost = Cost()
    asked = Asked(0.0, word=None, most=400, top=1)
    async with aclosing(both.positions(prompt, asked, cost)) as positions:
        await anext(positions)
    assert not both.running
    assert not both._core.llm.output_processor.has_unfinished_requests()
    assert cost.passes < 10


async def test_answers_that_dont_fit_at_once_are_handed_back_and_go_on(registry: Registry):
    """The cache holds a context, and three answers as they begin: then one is taken out of the
    batch, and read anew."""
    engine = await started(3, kv_cache_memory_bytes=17 * block_bytes())
    try:
        two: tuple[Engine, Engine] = registry.engines["base"], registry.engines["aligned"]
        config = NudgingConfig(gamma=0.4)
        prompts = [prompt_of(question, engine) for question in QUESTIONS]
        asked = []
        real = engine.positions

        def noted(ids, how, cost):
            asked.append(len(ids))
            return real(ids, how, cost)

        engine.positions = noted
        ones = await asyncio.gather(
            *(written(Fused(engine, prompt, REQUEST, config)) for prompt in prompts)
        )
        alone = len(asked)
        for prompt, one in zip(prompts, ones, strict=True):
            assert shown(*one) == shown(*await written(Nudged(*two, prompt, REQUEST, config)))
        asked.clear()
        for prompt in prompts:
            await written(Fused(engine, prompt, REQUEST, config))
        assert alone > len(asked)
    finally:
        await engine.aclose()


def block_bytes() -> int:
    """Of 32 tokens' keys and values, of both models."""
    import json

    size = 0
    for name in ("base", "aligned"):
        told = json.loads((DEMO / name / "config.json").read_text("utf-8"))
        heads, layers = told["num_key_value_heads"], told["num_hidden_layers"]
        size += 2 * layers * heads * told["head_dim"] * 4 * 32
    return size


async def test_a_dead_engine_ends_its_answers(both: VllmFusedEngine):
    """The last test of the module's engine."""
    answer = asyncio.create_task(
        written(Fused(both, prompt_of(QUESTIONS[4], both), REQUEST, NudgingConfig(gamma=0.4)))
    )
    while not both.running:  # noqa: ASYNC110  it is no event
        await asyncio.sleep(0.01)
    for process in both._processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="both"):
        await answer
    assert not both.alive
