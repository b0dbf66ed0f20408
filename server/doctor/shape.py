"""What a model's config.json says of its size: context, KV cache, numbers.

Knows: the keys that Hugging Face configurations use, and how vLLM reads them
(``ModelConfig._get_and_verify_max_len``, ``KVCacheSpec``). Does not know: files, memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_NESTED = ("text_config", "llm_config", "language_config")
"""Where a model with several parts keeps what its language model is."""

_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length",
            "max_sequence_length", "max_seq_length", "seq_len")  # fmt: skip
_KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")
_ALREADY_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "default", "mrope")

_DTYPE_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one token takes in a model's KV cache.

    layers: that have one. heads: of keys, which tensor parallelism splits; 0: it doesn't (MLA).
    values: numbers a layer and head (of MLA: a layer). exact: False where some layers keep less,
    or something else, than is computed here; ``note`` says what.
    """

    layers: int
    heads: int
    values: int
    exact: bool = True
    note: str = ""

    def token_bytes(self, value_bytes: int, tensor_parallel: int = 1, pipeline: int = 1) -> int:
        """On one GPU."""
        heads = max(1, self.heads // tensor_parallel)
        return -(-self.layers // pipeline) * heads * self.values * value_bytes


def language_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model."""
    for key in _NESTED:
        if isinstance(config.get(key), Mapping):
            return {**config, **config[key]}
    return config


def own_context(config: Mapping[str, Any]) -> tuple[int | None, bool]:
    """The longest context that the model was made for, as vLLM derives it; None where the
    configuration doesn't say; and whether every version of vLLM derives the same."""
    config = language_model(config)
    told = [config[key] for key in _LENGTHS if isinstance(config.get(key), int)]
    length = config.get("model_max_length") or (min(told) if told else None)
    if not isinstance(length, int):
        return None, False
    certain = True
    for rope in _ropes(config):
        kind = rope.get("rope_type", rope.get("type", "default"))
        certain &= kind in ("default", "llama3", "longrope", "su", "mrope")
        factor = rope.get("factor")
        gemma3 = "gemma3" in str(config.get("model_type"))
        if kind not in _ALREADY_SCALED and isinstance(factor, int | float) and not gemma3:
            length = int(length * factor)
            break
    return length, certain


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """One, or one for each kind of layer."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, Mapping):
        inner = [each for each in rope.values() if isinstance(each, Mapping)]
        yield from inner or [rope]


def cache_shape(config: Mapping[str, Any]) -> CacheShape | None:
    """None where the configuration doesn't say enough."""
    config = language_model(config)
    layers, queries = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not isinstance(layers, int):
        return None
    if isinstance(config.get("kv_lora_rank"), int):
        values = config["kv_lora_rank"] + int(config.get("qk_rope_head_dim") or 0)
        return CacheShape(layers, 0, values, note="compressed (MLA), whole on each GPU")
    if not isinstance(queries, int) or queries == 0:
        return None
    width = config.get("head_dim") or int(config.get("hidden_size") or 0) // queries
    if not width:
        return None
    heads = next((config[key] for key in _KV_HEADS if isinstance(config.get(key), int)), queries)
    note = _not_everywhere(config)
    return CacheShape(layers, heads, 2 * width, exact=not note, note=note)


def _not_everywhere(config: Mapping[str, Any]) -> str:
    """Why not every layer keeps every token; empty where each does."""
    kinds = config.get("layer_types")
    kinds = {str(kind) for kind in kinds} if isinstance(kinds, list) else set()
    others = kinds - {"full_attention", "sliding_attention", "chunked_attention"}
    if others or any(key.startswith(("mamba_", "ssm_", "linear_num_")) for key in config):
        return "at most: some layers keep a state instead of a cache"
    window = config.get("sliding_window")
    if "sliding_attention" in kinds or "chunked_attention" in kinds or (
        isinstance(window, int) and config.get("use_sliding_window", True) and not kinds
    ):  # fmt: skip
        return f"at most: some layers keep a window of {window or 'fewer'} tokens only"
    return ""


def dtype_bytes(dtype: str | None, config: Mapping[str, Any]) -> int | None:
    """Bytes of a weight as vLLM loads it; None for a type that isn't known here. ``auto`` is the
    configuration's own, but never float32."""
    if dtype in (None, "auto"):
        config = language_model(config)
        own = config.get("dtype") or config.get("torch_dtype")
        return 2 if own in ("float32", None) else _DTYPE_BYTES.get(str(own))
    return _DTYPE_BYTES.get(dtype)


def end_ids(*sources: Mapping[str, Any] | None) -> list[int]:
    """``eos_token_id`` of each, which is one, several, or none."""
    ids: list[int] = []
    for source in sources:
        end = (source or {}).get("eos_token_id")
        ids += end if isinstance(end, list) else [] if end is None else [end]
    return list(dict.fromkeys(ids))
