"""Resumable requests: the same text as without them, less work, and never a frozen engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager

import pytest

from server.core import AnswerRequest, Finished, Piece, SamplingParams
from server.decoding.stream import stream
from server.engines.base import TurnParams
from server.engines.vllm import build
from server.engines.vllm.engine import VllmEngine
from server.engines.vllm.resumable import Capacity, ResumableRequest
from server.serving.registry import Registry
from tests.conftest import DEMO
from tests.contract.conftest import GREEDY, ids, opened, plain, run
from tests.contract.test_laws import QUESTIONS, WISHES, answer, nudged, text
from tests.modes import runs_v2, schedules_ahead

TIGHT = f"""
engines:
  base: &engine
    model: {DEMO}/base
    dtype: float32
    max_model_len: 128
    kv_cache_memory_bytes: 16MiB
    args: {{num_gpu_blocks_override: 40, max_num_seqs: 48}}
  aligned: {{<<: *engine, model: {DEMO}/aligned}}
models:
  demo: {{base: base, aligned: aligned}}
"""


LOOPS = int(os.environ.get("NUDGE_TEST_LOOPS", "1"))
"""Of what froze now and then."""
INSTALLED = build.installed() or build.Vllm("", cpu=True)
KEPT = 40 - 1 - 4 if not schedules_ahead() or build.stops_in_flight(INSTALLED.version) else 0
"""Of those blocks, for resumable requests: all but one context's and vLLM's own; none where they
aren't right."""


@contextmanager
def room_for(registry: Registry, blocks: int, places: int = 64) -> Iterator[None]:
    """Let resumable requests hold that much of each engine, and check that all comes back."""
    engines = [each for each in registry.engines.values() if isinstance(each, VllmEngine)]
    before = [each._core.capacity for each in engines]
    for each, capacity in zip(engines, before, strict=True):
        each._core.capacity = Capacity(blocks, capacity.block_size, places)
    try:
        yield
        for each in engines:
            left = each._core.capacity
            assert (left._blocks, left._places) == (blocks, places)
    finally:
        for each, capacity in zip(engines, before, strict=True):
            each._core.capacity = capacity


async def told(
    registry: Registry, pair: str, question: str, request: AnswerRequest | None = None, **settings
) -> tuple[list[Piece], Finished]:
    return await answer(nudged(registry, pair, question, request=request, **settings), request)


@pytest.mark.parametrize("pair", ["demo", "cross"])
async def test_the_answers_are_the_same_with_and_without(registry: Registry, pair: str):
    """Also where a request may grow no more in the middle of an answer."""
    asked = [(each, gamma) for each in QUESTIONS for gamma in (0.2, 0.4, 0.7, 0.95, 1.0)]
    found = []
    for blocks in (0, 8, 1000):
        with room_for(registry, blocks):
            answers = await asyncio.gather(
                *(told(registry, pair, each, gamma=gamma) for each, gamma in asked)
            )
            found.append(
                [(text(pieces), end.stop_reason, end.usage.rounds) for pieces, end in answers]
            )
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("wish", WISHES)
async def test_so_are_answers_with_wishes(registry: Registry, wish: str):
    found = []
    for blocks in (0, 1000):
        with room_for(registry, blocks):
            pieces, end = await told(registry, "demo", QUESTIONS[0], WISHES[wish], gamma=0.7)
            found.append((text(pieces), end.stop_reason))
    assert found[0] == found[1]


async def test_a_seed_repeats_wherever_a_turn_runs(registry: Registry):
    request = AnswerRequest(SamplingParams(temperature=1.0, seed=5), max_tokens=60)
    found = []
    for blocks in (0, 1000, 1000):
        with room_for(registry, blocks):
            found.append(text((await told(registry, "demo", QUESTIONS[0], request, gamma=0.7))[0]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("pair", ["demo", "cross"])
async def test_nothing_is_read_twice(registry: Registry, pair: str):
    """Each side reads its prompt, what the other wrote, and at a turn's first step at most the
    one token that it had drawn and not read yet."""
    heard = 1.5 if pair == "cross" else 1  # other tokens for the same text
    rounds = 0
    for question in QUESTIONS:
        with room_for(registry, 1000):
            _, end = await told(registry, pair, question, gamma=0.97)
        usage = end.usage
        rounds += usage.rounds
        aligned = usage.aligned_prompt_tokens + usage.base_tokens * heard + 2 * usage.rounds
        assert usage.aligned_prefilled <= aligned
        base = usage.base_prompt_tokens + usage.aligned_tokens * heard + usage.rounds
        assert usage.base_prefilled <= base
    assert rounds > 10


async def test_it_can_be_switched_off(registry: Registry, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> bool:
        raise AssertionError("a place was asked for")

    monkeypatch.setattr(Capacity, "grow", refuse)
    for engine in registry.engines.values():
        monkeypatch.setattr(engine, "resumable", False)
    _, end = await told(registry, "demo", QUESTIONS[0], gamma=0.97)
    assert end.stop_reason == "aligned_end"


async def test_a_turn_longer_than_a_grant_goes_on(registry: Registry, monkeypatch):
    monkeypatch.setattr("server.engines.vllm.session.AHEAD", 8)
    request = AnswerRequest(GREEDY, max_tokens=100, ignore_eos=True)
    found = []
    for blocks in (0, 1000):
        with room_for(registry, blocks):
            pieces, end = await told(registry, "demo", QUESTIONS[0], request, gamma=0.05)
            found.append((text(pieces), end.stop_reason, end.usage.completion_tokens))
    assert found[0] == found[1]
    assert found[0][2] == 100


@pytest.mark.skipif(not KEPT, reason="no request is kept: steps in flight aren't stopped rightly")
async def test_it_goes_on_in_the_request_that_it_has(registry: Registry, monkeypatch):
    monkeypatch.setattr("server.engines.vllm.session.AHEAD", 8)
    begun = []

    class Counted(ResumableRequest):
        def __init__(self, *args) -> None:
            begun.append(self)
            super().__init__(*args)

    monkeypatch.setattr("server.engines.vllm.session.ResumableRequest", Counted)
    engine = registry.engines["base"]
    session = opened(engine, "Page 7")
    unread = session.length
    written, _ = await run(session, TurnParams(GREEDY, max_tokens=40, stop_below=0.0))
    assert ids(written) == ids(await plain(engine, "Page 7", len(written)))
    grants = -(-len(written) // 8)
    assert grants > 2
    assert len(begun) == 1
    assert session.prefilled <= unread + grants - 1, "the one token that was drawn and not read"
    # The same holds for what comes after it.
    await session.extend(engine.info.tokenizer.encode_text(" river"))
    await run(session, TurnParams(GREEDY, max_tokens=20, stop_below=0.0))
    assert len(begun) == 1
    await session.aclose()


async def test_an_answer_fills_its_context_and_the_engine_lives(registry: Registry):
    with room_for(registry, 1000):
        request = AnswerRequest(GREEDY, ignore_eos=True)
        _, end = await told(registry, "demo", QUESTIONS[0], request, gamma=0.6)
        assert end.stop_reason == "context"
        longest = max(end.usage.base_prompt_tokens, end.usage.aligned_prompt_tokens)
        assert longest + end.usage.completion_tokens >= 505
    _, end = await told(registry, "demo", QUESTIONS[0])
    assert end.stop_reason == "aligned_end"


async def test_whoever_leaves_leaves_nothing_in_the_engines(registry: Registry):
    with room_for(registry, 1000):
        for count in range(1, 12):
            request = AnswerRequest(GREEDY, max_tokens=100)
            writer = nudged(registry, "demo", QUESTIONS[0], request=request, gamma=0.8)
            async with aclosing(stream(writer, request)) as events:
                async for _ in events:
                    count -= 1
                    if not count:
                        break
        for after in (0.0, 0.01, 0.05, 0.1):
            writer = nudged(registry, "demo", QUESTIONS[0], request=request, gamma=0.8)
            task = asyncio.create_task(answer(writer, request))
            await asyncio.sleep(after)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    for engine in registry.engines.values():
        assert isinstance(engine, VllmEngine)
        assert not engine._llm.output_processor.has_unfinished_requests()


async def test_a_turn_that_is_broken_off_is_aborted_and_the_next_one_right(registry: Registry):
    engine = registry.engines["base"]
    params = TurnParams(GREEDY, max_tokens=40, stop_below=0.0)
    whole, _ = await run(opened(engine, "Once"), params)
    session = opened(engine, "Once")
    async with aclosing(session.generate(params)) as events:
        async for _event in events:
            if session.length > 5:
                break
    taken = session.length - len(engine.info.tokenizer.encode_prompt("Once"))
    assert not engine.running
    rest, _ = await run(session, params)
    assert [token.id for token in rest[:5]] == [token.id for token in whole[taken : taken + 5]]
    await session.aclose()


async def test_what_is_taken_back_is_forgotten(registry: Registry):
    engine = registry.engines["base"]
    params = TurnParams(GREEDY, max_tokens=6, stop_below=0.0)
    session = opened(engine, "Once")
    first, _ = await run(session, params)
    await session.extend(engine.info.tokenizer.encode_text(" river"), drop=3)
    after, _ = await run(session, params)
    fresh = engine.open(
        [
            *engine.info.tokenizer.encode_prompt("Once"),
            *(token.id for token in first[:3]),
            *engine.info.tokenizer.encode_text(" river"),
        ]
    )
    expected, _ = await run(fresh, params)
    assert [token.id for token in after] == [token.id for token in expected]
    await session.aclose()
    await fresh.aclose()


async def test_every_output_is_heard_and_who_waits_for_one_is_known(registry: Registry):
    """By which a hung engine is found out (`server.engines.silence`)."""
    engine = registry.engines["base"]
    assert isinstance(engine, VllmEngine)
    watch = engine._core.watch
    for stop in (None, 0.0):  # by a request of its own, and by a resumable one
        session, before = opened(engine, "Once"), watch.heard
        unread = session.length
        events = session.generate(TurnParams(GREEDY, max_tokens=20, stop_below=stop))
        first = asyncio.ensure_future(anext(events))
        while not watch.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert list(watch.reading.values()) == [unread]
        await first
        assert not watch.reading
        # What nobody reads is heard all the same, and nobody waits for it.
        async with asyncio.timeout(10):
            while watch.heard < before + 10:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not watch.waiting
        await events.aclose()
        await session.check([], 1)
        await session.score(1)
        await session.aclose()
        assert not watch.waiting
        assert not watch.reading


# -- forty answers, and KV for ten ---------------------------------------------------------------


@pytest.fixture(scope="module")
async def tight(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Registry]:
    from server.config import load

    config = tmp_path_factory.mktemp("tight") / "tight.yaml"
    config.write_text(TIGHT)
    running = Registry(load(config))
    await running.start()
    yield running
    await running.aclose()


async def test_forty_answers_with_kv_for_ten_all_finish_as_where_there_is_room(
    registry: Registry, tight: Registry
):
    engine = tight.engines["base"]
    assert isinstance(engine, VllmEngine)
    # As many as on the CPU, or fewer: on a GPU a block has fewer tokens, and a context more blocks.
    assert 0 < engine._core.capacity._blocks <= KEPT if KEPT else not engine._core.capacity._blocks
    request = AnswerRequest(GREEDY, max_tokens=60, ignore_eos=True)
    asked = [f"{question} ({number})" for number in range(8) for question in QUESTIONS]
    roomy = await asyncio.gather(
        *(told(registry, "demo", each, request, gamma=0.7) for each in asked)
    )
    for _ in range(LOOPS):
        async with asyncio.timeout(600 if runs_v2() else 120):  # interpreted, it is slow
            together = await asyncio.gather(
                *(told(tight, "demo", each, request, gamma=0.7) for each in asked)
            )
        assert [text(pieces) for pieces, _ in together] == [text(pieces) for pieces, _ in roomy]
        assert all(end.stop_reason in ("length", "context") for _, end in together)
        for each in tight.engines.values():
            assert isinstance(each, VllmEngine)
            assert each._core.capacity._blocks == KEPT
