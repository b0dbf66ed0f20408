"""What vLLM is told on a GPU, where no test runs: read off the arguments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
from server.core import ConfigError
from server.engines.vllm import build, engine


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "current_platform", SimpleNamespace(is_cpu=lambda: False))


def test_a_cache_with_a_size_needs_little_of_the_gpu_free():
    sized = {"model": "x", "kv_cache_memory_bytes": 2**24}
    assert engine._engine_args("x", sized, None).gpu_memory_utilization == engine.SIZED_SHARE
    own = sized | {"gpu_memory_utilization": 0.3}
    assert engine._engine_args("x", own, None).gpu_memory_utilization == 0.3
    assert engine._engine_args("x", {"model": "x"}, None).gpu_memory_utilization == 0.92


def test_a_device_is_one_of_those_that_the_operator_shows(monkeypatch: pytest.MonkeyPatch):
    args = {"model": "x"}
    assert engine._engine_args("x", args, "1, 3").device_ids == [1, 3]
    assert engine._engine_args("x", args, "GPU-5e0a").device_ids == ["GPU-5e0a"]
    assert engine._engine_args("x", args, None).device_ids is None
    monkeypatch.setattr(build, "engine_args", lambda: frozenset())
    assert engine._engine_args("x", args, "1").device_ids is None


def model(size: int, *ends: int) -> Any:
    hf_config = SimpleNamespace(eos_token_id=list(ends))
    return SimpleNamespace(
        model="/nowhere", revision=None, hf_config=hf_config, get_vocab_size=lambda: size
    )


def test_a_stop_token_that_the_vocabulary_lacks_is_none():
    tokenizer: Any = SimpleNamespace(chat=SimpleNamespace(eos_token_id=2))
    assert engine.stop_ids(model(100, 7, 100, 99), tokenizer) == (7, 99, 2)
    with pytest.raises(ConfigError, match=r"\[7, 2\] are beyond its vocabulary of 2 tokens"):
        engine.stop_ids(model(2, 7), tokenizer)
