"""How an engine runs, in words, for the log: by which of vLLM's modes, and with how much cache.

Knows: vLLM's configuration, as it is once an engine is loaded. Does not know: who reads it.
"""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig


def account(config: VllmConfig) -> str:
    """What the configuration tells; vLLM chooses some things later, in the engine's process."""
    return ", ".join(
        (
            f"{'V2' if config.use_v2_model_runner else 'V1'} model runner",
            f"{'a' if config.scheduler_config.async_scheduling else ''}synchronous scheduling",
            f"attention {_attention(config)}",
            f"{cached_tokens(config):,} tokens of KV cache",
            _graphs(config),
        )
    )


def cached_tokens(config: VllmConfig) -> int:
    """That the KV cache holds. Too many where layers differ, unless vLLM tells (0.33 and newer)."""
    cache: Any = config.cache_config
    told = getattr(cache, "kv_cache_size_tokens", None)
    return int(told or (cache.num_gpu_blocks or 0) * cache.block_size)


def _attention(config: VllmConfig) -> str:
    chosen = config.attention_config.backend
    return "by vLLM's choice" if chosen is None else str(chosen.name)


def _graphs(config: VllmConfig) -> str:
    mode = config.compilation_config.cudagraph_mode
    if config.model_config.enforce_eager:
        return "eager"
    return "no graphs" if mode is None or mode.name == "NONE" else f"graphs {mode.name}"
