"""The doctor's memory plan against what real engines say of themselves."""

from __future__ import annotations

import pytest

from server import doctor
from server.engines import machine
from server.serving.registry import Registry


async def test_the_planned_kv_cache_is_the_engines(registry: Registry):
    report = doctor.examine(registry.settings, machine.look())
    assert report.ok, report.findings
    (cpu,) = report.devices
    for planned in cpu.tenants:
        vllm = registry.engines[planned.name]._llm.vllm_config
        cache = vllm.cache_config
        # The engine's are whole blocks.
        held = cache.num_gpu_blocks * cache.block_size
        assert planned.tokens == pytest.approx(held, abs=cache.block_size)
        assert planned.context == vllm.model_config.max_model_len
