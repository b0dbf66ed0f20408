"""The doctor's estimate: what a model's files say of its size, and what fits on a device."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from server.doctor import memory
from server.doctor.memory import Device
from server.engines.machine import Memory, Tenant
from server.engines.report import Notes
from server.engines.vllm import examine
from server.engines.vllm.backend import VllmSettings
from server.engines.vllm.weights import weigh

GIB = 2**30


def write_shard(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A safetensors file of these tensors, as a hole: it takes no disk."""
    header, at = {}, 0
    for name, (kind, dims) in tensors.items():
        end = at + prod(dims) * {"F32": 4, "BF16": 2, "I32": 4}[kind]
        header[name] = {"dtype": kind, "shape": dims, "data_offsets": [at, end]}
        at = end
    packed = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(packed)) + packed)
        file.truncate(8 + len(packed) + at)


def weighed(folder: Path, **settings: Any) -> int:
    """Bytes that a folder's weights take, without what its files take besides."""
    config = AutoConfig.for_model("llama", tie_word_embeddings=settings.pop("tied", False))
    engine = VllmSettings(model=str(folder), **settings)
    found = weigh("engines.x", engine, folder, config, Notes())
    assert found.exact
    heads = [path for path in folder.iterdir() if path.name.startswith("model")]
    return found.size - sum(8 + struct.unpack("<Q", p.read_bytes()[:8])[0] for p in heads)


def test_weights_are_summed_over_files_by_what_they_are(tmp_path: Path):
    write_shard(tmp_path / "model-1.safetensors", {"a": ("F32", [10, 4]), "q": ("I32", [8])})
    write_shard(tmp_path / "model-2.safetensors", {"lm_head.weight": ("BF16", [10, 2])})
    assert weighed(tmp_path) == 60 * 2 + 32, "vLLM loads none in 32 bits unless it is told to"
    assert weighed(tmp_path, dtype="float32") == 60 * 4 + 32
    assert weighed(tmp_path, dtype="float32", tied=True) == 40 * 4 + 32


def test_mistrals_own_files_beside_the_others_are_not_counted_twice(tmp_path: Path):
    write_shard(tmp_path / "model.safetensors", {"a": ("BF16", [10])})
    write_shard(tmp_path / "consolidated.safetensors", {"a": ("BF16", [10])})
    assert weighed(tmp_path) == 20


LLAMA_2_7B = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
              "hidden_size": 4096}  # fmt: skip
LLAMA_2_70B = {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
               "hidden_size": 8192}  # fmt: skip
GEMMA_2_27B = {"num_hidden_layers": 46, "num_attention_heads": 32, "num_key_value_heads": 16,
               "hidden_size": 4608, "head_dim": 128, "sliding_window": 4096}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "about", "settings", "token"),
    [
        ("llama", LLAMA_2_7B, {}, 32 * 2 * 32 * 128 * 2),  # 512 KiB
        ("llama", LLAMA_2_7B, {"dtype": "float32"}, 32 * 2 * 32 * 128 * 4),
        ("llama", LLAMA_2_7B, {"args": {"kv_cache_dtype": "fp8"}}, 32 * 2 * 32 * 128),
        ("llama", LLAMA_2_70B, {}, 80 * 2 * 8 * 128 * 2),  # 320 KiB
        ("llama", LLAMA_2_70B, {"tensor_parallel_size": 4}, 80 * 2 * 2 * 128 * 2),
        ("llama", LLAMA_2_70B, {"tensor_parallel_size": 16}, 80 * 2 * 1 * 128 * 2),
        ("gemma2", GEMMA_2_27B, {}, 46 * 2 * 16 * 128 * 2),  # at most: some keep a window
        ("gemma3", {"text_config": GEMMA_2_27B}, {}, 46 * 2 * 16 * 128 * 2),
        ("gpt2", {}, {}, 12 * 2 * 768 * 2),
        ("deepseek_v3", {}, {}, None),  # compressed
        ("mamba", {}, {}, None),
    ],
)
def test_bytes_of_a_token_in_the_kv_cache(
    kind: str, about: dict[str, Any], settings: dict[str, Any], token: int | None
):
    text = AutoConfig.for_model(kind, **about).get_text_config(decoder=True)
    assert examine._token_bytes(VllmSettings(model="x", **settings), text) == token


@pytest.mark.parametrize(
    ("kind", "about", "longest"),
    [
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("gpt2", {"n_positions": 512}, 512),
        ("llama", {"max_position_embeddings": 2048, "rope_parameters": {
            "rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, 8192),
        ("llama", {"max_position_embeddings": 131072, "rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}, 131072),
        ("llama", {"max_position_embeddings": 131072, "rope_parameters": {
            "rope_type": "yarn", "factor": 32.0, "rope_theta": 1e4,
            "original_max_position_embeddings": 4096}}, 131072),
        ("mamba", {}, None),
    ],
)  # fmt: skip
def test_a_models_own_context(kind: str, about: dict[str, Any], longest: int | None):
    text = AutoConfig.for_model(kind, **about).get_text_config(decoder=True)
    assert examine._longest(text) == longest


# -- what fits ------------------------------------------------------------------------------------

LLAMA = Tenant(
    "x", weights=13_476_831_232, exact=True, allowance=examine.GPU_ALLOWANCE, token=524_288,
    context=4096, chat=2048, given=None, sized=False,
)  # fmt: skip


def tenant(name: str = "x", share: float = 0.9, cache: int | None = None, **changes: Any) -> Tenant:
    """Llama-2 7B in 16 bits on a GPU of 24 GiB."""
    given = int(24 * GIB * share) if cache is None else cache
    return replace(LLAMA, name=name, given=given, sized=cache is not None, **changes)


def test_a_share_holds_weights_and_an_allowance_and_the_rest_is_cache():
    x = tenant()
    assert x.cache == int(24 * GIB * 0.9) - 13_476_831_232 - int(1.5 * GIB) == 8_105_379_430
    assert (x.tokens, x.chats) == (15_459, 7)  # of 2048 tokens, 1 GiB each
    assert tenant(share=0.5).cache == 0


def test_a_cache_of_given_size_is_that_size():
    x = tenant(cache=4 * GIB)
    assert (x.cache, x.tokens, x.chats) == (4 * GIB, 8192, 4)


def test_what_is_not_known_is_not_estimated():
    assert tenant(weights=None).cache is None
    x = tenant(token=None)
    assert x.cache is not None
    assert (x.tokens, x.chats) == (None, None)


def plan(*tenants: Tenant, chats: int = 4, free: int | None = None) -> list[str]:
    notes = Notes()
    memory.examine([Device("GPU 0", Memory(24 * GIB, free), tenants)], chats, notes)
    return [f"{finding.level} {finding}" for finding in notes]


SMALL = {"weights": GIB, "token": 2**14, "context": 2048}


@pytest.mark.parametrize(
    ("tenants", "chats", "message"),
    [
        ([tenant()], 4, r"ok GPU 0: about 7 such chats fit at once \(4 were asked for\)"),
        ([tenant()], 8, r"warning engines.x: 8 chats of 2048 tokens take about 22.1 GiB of GPU 0 "
         r"with weights \(12.6 GiB\) and computing, 462 MiB more than it is given: 7 fit. "
         "Set gpu_memory_utilization of x to 0.92"),
        ([tenant()], 9, "warning engines.x: .* Take a larger device, one for each engine, "
         "quantized weights, a lower max_model_len or fewer chats: 9 of them would take 257 MiB"),
        ([tenant(share=0.5)], 4, "error engines.x: .* 0 fit, and no context of 4096 "
         "tokens, without which vLLM doesn't start. Set gpu_memory_utilization of x to 0.76"),
        ([tenant(share=0.5, exact=False)], 4, "warning engines.x: .* 0 fit"),
        ([tenant(share=0.55)], 4, "warning engines.x: .* 0 fit"),
        ([tenant(share=0.5, token=None)], 4, "error engines.x: .* 0 fit. Set gpu"),
        ([tenant(share=0.65)], 4, "warning engines.x: .* 1 fit, and no context of 4096 "
         "tokens.* Set max_model_len to 3171 at most. Or: Set gpu_memory_utilization of x to 0.76"),
        ([tenant(share=0.65, longest=2048)], 4, "warning engines.x: .* Set max_model_len to 2048 "
         "at most. Or"),
        ([tenant(cache=GIB)], 1, "warning engines.x: 1 chats of 2048 tokens .*1.0 GiB "
         "more than it is given.* at most. Or: Set kv_cache_memory_bytes of x to 2048MiB"),
        ([tenant(cache=20 * GIB)], 4, "error GPU 0: its engines ask for 34.1 GiB of 24.0 GiB: 10.1 "
         "GiB too much. Set kv_cache_memory_bytes of x to 4096MiB"),
        ([tenant(cache=20 * GIB, exact=False)], 4, "warning GPU 0: its engines ask for 34.1 GiB"),
        ([tenant(cache=11 * GIB)], 4, "warning GPU 0: its engines ask for 25.1 GiB"),  # estimated
        ([tenant("x", 0.6), tenant("y", 0.3, **SMALL)], 4, "warning engines.x: .* Set "
         "gpu_memory_utilization of x to 0.76 and gpu_memory_utilization of y to 0.11"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_by_how_much_and_what_to_set(
    tenants: list[Tenant], chats: int, message: str
):
    told = plan(*tenants, chats=chats)
    assert any(re.match(message, line) for line in told), told


def test_memory_that_others_use_is_a_warning():
    (line,) = plan(tenant(), free=3 * GIB)
    assert "warning GPU 0: its engines ask for 21.6 GiB, and 3.0 GiB of 24.0 GiB are free" in line


def test_an_engine_on_several_gpus_is_told_once():
    notes = Notes()
    devices = [Device(f"GPU {n}", Memory(24 * GIB), (tenant(share=0.5),)) for n in (0, 1)]
    memory.examine(devices, 4, notes)
    assert len([each for each in notes if each.level == "error"]) == 1
