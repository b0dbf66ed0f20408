"""How a vLLM engine starts, and fails to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import time

import pytest

from server.core import ConfigError, EngineUnavailable
from server.engines.vllm import engine
from server.engines.vllm.engine import VllmEngine
from tests.conftest import DEMO

ARGS = {"model": str(DEMO / "aligned"), "max_model_len": 64, "kv_cache_memory_bytes": 2**24}


async def test_a_device_that_this_build_does_not_have_is_said():
    with pytest.raises(ConfigError, match=r"device '0'.*CPU only"):
        await VllmEngine.start("x", ARGS, device="0")


async def test_an_argument_that_vllm_does_not_have_is_said():
    with pytest.raises(ConfigError, match="no_such_argument"):
        await VllmEngine.start("x", ARGS | {"no_such_argument": 1})


async def test_a_wrong_argument_is_one_line_that_names_the_engine():
    with pytest.raises(ConfigError, match=r"engine 'x'.*dtype") as caught:
        await VllmEngine.start("x", ARGS | {"dtype": "float99"})
    assert "\n" not in str(caught.value)


async def test_a_start_that_takes_too_long_is_given_up_and_leaves_no_process():
    before = set(multiprocessing.active_children())
    with pytest.raises(EngineUnavailable, match="did not start within 3 s"):
        await VllmEngine.start("x", ARGS, timeout_s=3)
    assert set(multiprocessing.active_children()) <= before  # other engines may just be ending


async def test_a_start_that_is_given_up_before_it_has_a_process_leaves_none(monkeypatch):
    """As on a busy machine, where vLLM takes seconds before it starts one."""
    construct, before = engine._construct, set(multiprocessing.active_children())

    def slow(*args: object) -> object:
        time.sleep(1)
        return construct(*args)

    monkeypatch.setattr(engine, "_construct", slow)
    with pytest.raises(EngineUnavailable, match="did not start within 0 s"):
        await VllmEngine.start("x", ARGS, timeout_s=0.1)
    await asyncio.sleep(1)
    assert set(multiprocessing.active_children()) <= before


async def test_a_start_that_is_cut_off_leaves_no_process_and_says_nothing():
    """As by Ctrl-C. What vLLM makes of its killed process is nobody's to read."""
    before, said = set(multiprocessing.active_children()), []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: said.append(context))
    try:
        start = asyncio.create_task(VllmEngine.start("x", ARGS))
        async with asyncio.timeout(60):
            while set(multiprocessing.active_children()) <= before:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start
        del start
        for _ in range(3):
            gc.collect()
            await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert set(multiprocessing.active_children()) <= before
    assert not said


async def test_extra_engine_arguments_reach_vllm():
    engine = await VllmEngine.start("x", ARGS | {"max_num_seqs": 3, "seed": 5}, resumable=False)
    try:
        config = engine._llm.vllm_config
        assert config.scheduler_config.max_num_seqs == 3
        assert config.model_config.seed == 5
        assert config.cache_config.enable_prefix_caching
        assert engine.info.context_length == 64
        assert engine.alive
        assert not engine.resumable
    finally:
        await engine.aclose()
