"""How a vLLM engine starts, and fails to."""

from __future__ import annotations

import multiprocessing

import pytest

from server.core import ConfigError, EngineUnavailable
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
