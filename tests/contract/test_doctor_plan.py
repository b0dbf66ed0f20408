"""The doctor's memory plan against what real engines say of themselves."""

from __future__ import annotations

from server import doctor
from server.doctor import machine
from server.serving.registry import Registry


async def test_the_planned_kv_cache_is_the_engines(registry: Registry):
    (cpu,) = doctor.examine(registry.settings, machine.look()).devices
    for row in cpu.rows():
        vllm = registry.engines[row.tenant.name]._llm.vllm_config
        cache = vllm.cache_config
        assert row.tenant.block == cache.block_size
        assert row.tokens == cache.num_gpu_blocks * cache.block_size
        assert row.tenant.context == vllm.model_config.max_model_len
        ends = registry.engines[row.tenant.name].info.stop_ids
        assert ends, "the doctor would have refused it"


async def test_the_doctor_finds_nothing_wrong_with_engines_that_run(registry: Registry):
    report = doctor.examine(registry.settings, machine.look())
    assert report.ok, report.findings
