"""The doctor's arithmetic: what a model's files and configuration say of its size, and the plan."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from server.doctor import memory, shape, weights
from server.doctor.memory import Device, Tenant
from server.doctor.report import Notes

GIB = 2**30


def write_shard(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file of these tensors, as a hole: it takes no disk."""
    header, at = {}, 0
    for name, (kind, dims) in tensors.items():
        end = at + prod(dims) * {"F32": 4, "BF16": 2, "F16": 2, "I32": 4, "F8_E4M3": 1}[kind]
        header[name] = {"dtype": kind, "shape": dims, "data_offsets": [at, end]}
        at = end
    packed = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(packed)) + packed)
        file.truncate(8 + len(packed) + at)


# -- what a configuration says of a model's size --------------------------------------------------

LLAMA_2_7B = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
              "hidden_size": 4096, "max_position_embeddings": 4096, "torch_dtype": "float16",
              "vocab_size": 32000}  # fmt: skip
LLAMA_2_70B = LLAMA_2_7B | {"num_hidden_layers": 80, "num_attention_heads": 64,
                            "num_key_value_heads": 8, "hidden_size": 8192}  # fmt: skip
QWEN_2_5_3B = {"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
               "hidden_size": 2048, "sliding_window": 9, "use_sliding_window": False}  # fmt: skip
GEMMA_2_27B = {"num_hidden_layers": 46, "num_attention_heads": 32, "num_key_value_heads": 16,
               "hidden_size": 4608, "head_dim": 128, "sliding_window": 4096}  # fmt: skip
DEEPSEEK_V2 = {"num_hidden_layers": 60, "num_attention_heads": 128, "num_key_value_heads": 128,
               "kv_lora_rank": 512, "qk_rope_head_dim": 64, "hidden_size": 5120}  # fmt: skip


@pytest.mark.parametrize(
    ("about", "parallel", "token", "exact"),
    [
        (LLAMA_2_7B, 1, 32 * 2 * 32 * 128 * 2, True),  # 512 KiB
        (LLAMA_2_70B, 1, 80 * 2 * 8 * 128 * 2, True),  # 320 KiB
        (LLAMA_2_70B, 4, 80 * 2 * 2 * 128 * 2, True),
        (LLAMA_2_70B, 16, 80 * 2 * 1 * 128 * 2, True),  # a head is never split
        (QWEN_2_5_3B, 1, 36 * 2 * 2 * 128 * 2, True),
        (GEMMA_2_27B, 1, 46 * 2 * 16 * 128 * 2, False),  # every other layer keeps a window
        (DEEPSEEK_V2, 1, 60 * (512 + 64) * 2, True),
        (DEEPSEEK_V2, 8, 60 * (512 + 64) * 2, True),  # compressed: whole on each GPU
        ({"text_config": QWEN_2_5_3B}, 1, 36 * 2 * 2 * 128 * 2, True),
        (
            QWEN_2_5_3B | {"layer_types": ["full_attention", "linear_attention"] * 18},
            1,
            None,
            False,
        ),
    ],
)
def test_bytes_of_a_token_in_the_kv_cache(
    about: dict[str, Any], parallel: int, token: int | None, exact: bool
):
    found = shape.cache_shape(about)
    assert found is not None
    if token is not None:
        assert found.token_bytes(2, parallel) == token
    assert found.exact == exact == (found.note == "" or "MLA" in found.note)


def test_a_configuration_that_says_too_little_has_no_cache_shape():
    assert shape.cache_shape({}) is None
    assert shape.cache_shape({"num_hidden_layers": 2}) is None
    assert shape.cache_shape({"num_hidden_layers": 2, "num_attention_heads": 2}) is None


@pytest.mark.parametrize(
    ("about", "context"),
    [
        ({"max_position_embeddings": 4096}, (4096, True)),
        ({"n_positions": 1024}, (1024, True)),
        ({"text_config": {"max_position_embeddings": 99}}, (99, True)),
        ({"max_position_embeddings": 8192, "rope_scaling": {"type": "linear", "factor": 2.0}},
         (16384, False)),
        ({"max_position_embeddings": 131072, "rope_parameters": {
            "rope_type": "llama3", "factor": 8.0}}, (131072, True)),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": 4.0}},
         (4096, False)),
        ({"max_position_embeddings": 512, "model_max_length": 1024}, (1024, True)),
        ({"hidden_size": 8}, (None, False)),
    ],
)  # fmt: skip
def test_a_models_own_context(about: dict[str, Any], context: tuple[int | None, bool]):
    assert shape.own_context(about) == context


def test_bytes_of_a_weight():
    assert shape.dtype_bytes("float32", {}) == 4
    assert shape.dtype_bytes("half", {}) == 2
    assert shape.dtype_bytes(None, {"dtype": "bfloat16"}) == 2
    assert shape.dtype_bytes("auto", {"torch_dtype": "float32"}) == 2, "vLLM never loads it as such"
    assert shape.dtype_bytes("float8", {}) is None


def test_weights_are_summed_over_files_by_what_they_are(tmp_path: Path):
    write_shard(tmp_path / "model-1.safetensors", {"a": ("BF16", [10, 4]), "q": ("I32", [8])})
    write_shard(tmp_path / "model-2.safetensors", {"lm_head.weight": ("BF16", [10, 2])})
    found = weights.read(tmp_path)
    assert (found.floats, found.head, found.fixed, found.files) == (60, 20, 32, 2)
    assert found.loaded(4, tied=False) == 60 * 4 + 32
    assert found.loaded(4, tied=True) == 40 * 4 + 32


def test_mistrals_own_files_beside_the_others_are_not_counted_twice(tmp_path: Path):
    write_shard(tmp_path / "model.safetensors", {"a": ("BF16", [10])})
    write_shard(tmp_path / "consolidated.safetensors", {"a": ("BF16", [10])})
    assert weights.read(tmp_path).floats == 10


# -- the memory plan ------------------------------------------------------------------------------


def tenant(name: str, **changes: Any) -> Tenant:
    """Llama-2 7B in 16 bits on a GPU."""
    return replace(
        Tenant(name, weights=13_476_831_232, token=524_288, block=16, context=4096, chat=2048,
               cache=None, share=0.9),
        **changes,
    )  # fmt: skip


def test_a_share_holds_weights_and_an_allowance_and_the_rest_is_cache():
    device = Device("GPU 0", 24 * GIB, None, True, (tenant("x"),))
    (row,) = device.rows()
    assert row.cache == int(24 * GIB * 0.9) - 13_476_831_232 - int(1.5 * GIB)
    assert row.cache == 8_105_379_430  # by hand
    assert row.tokens == 966 * 16
    assert row.chats == 7  # of 2048 tokens, 1 GiB each


def test_a_cache_of_given_size_is_that_size():
    device = Device("GPU 0", None, None, True, (tenant("x", cache=4 * GIB),))
    assert [(row.cache, row.tokens, row.chats) for row in device.rows()] == [(4 * GIB, 8192, 4)]


def test_blocks_are_not_shared_between_chats():
    assert tenant("x", block=32).blocks(33) == 64 * 524_288


def test_balanced_shares_hold_the_same_number_of_tokens():
    small = tenant("small", weights=2 * GIB, token=65_536)
    device = Device("GPU 0", 80 * GIB, None, True, (tenant("big"), small))
    shares = device.balanced()
    assert shares is not None
    assert sum(shares.values()) <= memory.HEADROOM
    tenants = tuple(replace(each, share=shares[each.name]) for each in device.tenants)
    big, little = replace(device, tenants=tenants).rows()
    assert big.tokens is not None
    assert little.tokens is not None
    # Shares have two digits: a hundredth of the GPU may be on the wrong side.
    assert abs(little.tokens - big.tokens) * 65_536 <= 0.02 * 80 * GIB
    assert big.tokens > 100_000


def plan(*tenants: Tenant, chats: int = 4, total: int = 24 * GIB, **device: Any) -> list[str]:
    notes = Notes()
    memory.examine([Device("GPU 0", total, device.get("free"), True, tenants)], chats, notes)
    return [f"{finding.level} {finding}" for finding in notes.findings]


@pytest.mark.parametrize(
    ("tenants", "wanted", "message"),
    [
        ((tenant("x"),), 4, r"ok GPU 0: 7 such chats fit at once \(4 were asked for\)"),
        ((tenant("x"),), 9, r"warning engines.x: its KV cache on GPU 0 \(7.5 GiB\) holds 7 chats "
         r"of 2048 tokens at once, not 9; .* Set gpu_memory_utilization of x to 0.95"),
        ((tenant("x", share=0.5),), 4, r"error engines.x: the weights take 12.6 GiB, and its share "
         r"of GPU 0 is 12.0 GiB. Set gpu_memory_utilization of x to 0.9"),
        ((tenant("x", share=0.65),), 4, "warning engines.x: one context of 4096 tokens takes 2.0 "
         "GiB of KV cache, and there is 1.5 GiB"),
        ((tenant("x", share=0.58),), 4, "error engines.x: one context of 4096 tokens"),
        ((tenant("x", exact=False, share=0.5),), 4, "warning engines.x: the weights take"),
        ((tenant("x", cache=GIB),), 1, "error engines.x: one context of 4096 tokens takes 2.0 "
         "GiB of KV cache, and there is 1.0 GiB.* Set max_model_len to 2048 at most, or set kv"),
        ((tenant("x", cache=20 * GIB),), 4, "error GPU 0: its engines ask for 34.1 GiB of 24.0"),
        ((tenant("x", cache=11 * GIB),), 4, "warning GPU 0: its engines ask for 25.1 GiB of 24.0 "
         "GiB, of which 1.5 GiB are an allowance"),
        ((tenant("x"), tenant("y", weights=10 * GIB, share=0.1)), 4, "error engines.y: the weights "
         "take 10.0 GiB.* Take a larger GPU, a GPU for each engine"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_what_to_set(
    tenants: tuple[Tenant, ...], wanted: int, message: str
):
    assert any(re.search(f"^{message}", line) for line in plan(*tenants, chats=wanted)), plan(
        *tenants, chats=wanted
    )


def test_memory_that_others_use_is_a_warning():
    assert any(
        "ask for 21.6 GiB, and 3.0 GiB of 24.0 GiB are free" in line
        for line in plan(tenant("x"), free=3 * GIB)
    )


def test_an_engine_on_several_gpus_is_told_once_and_gets_one_share():
    notes = Notes()
    shared = tenant("x", share=0.5, weights=13_476_831_232)
    crowded = Device("GPU 0", 24 * GIB, None, True, (shared, tenant("y", cache=None, weights=GIB,
                     token=1000, share=0.1)))  # fmt: skip
    empty = Device("GPU 1", 24 * GIB, None, True, (shared,))
    memory.examine([crowded, empty], 4, notes)
    (error,) = notes.of("error")
    share = (crowded.balanced() or {})["x"]
    assert f"of x to {share:.2f} and of y" in error.advice
