"""vLLM as a backend: the settings of its engines, and the way to what starts and examines them.

Knows: which settings are vLLM's, and which can't work together. Does not know: vLLM itself, which
takes seconds to import; what needs it is named by its path, and imported when it is asked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import ByteSize, Field, model_validator

from server.engines.backend import Backend, EngineSettings, later
from server.engines.report import did_you_mean
from server.engines.vllm import build

DEFAULT_MEMORY_SHARE = 0.92
"""vLLM's ``gpu_memory_utilization`` where none is set: nearly the whole GPU, for one engine."""

OWN = frozenset(
    {
        "backend",
        "device",
        "cpu_threads",
        "start_timeout_s",
        "silence_s",
        "resumable",
        "drafter",
        "draft_tokens",
        "args",
    }
)
"""Settings of an engine that are no argument of vLLM's, or that hold such."""


_FUSED = frozenset({"speculative_config", "worker_extension_cls", "scheduler_cls"})

LONGER = 128
"""Ids that an aligned model's prompt may be longer than the base model's, in one engine. So many
places of the KV cache are reserved for each answer."""


class VllmSettings(EngineSettings):
    """One model on one engine. All but `OWN` are vLLM's engine arguments; any other of them goes
    under ``args``."""

    folders: ClassVar[tuple[str, ...]] = (*EngineSettings.folders, "drafter")

    backend: Literal["vllm"] = "vllm"
    device: str | None = Field(None, coerce_numbers_to_str=True)
    """GPU index, or several ("0,1") for tensor parallelism; "cpu"; unset: vLLM's choice."""
    cpu_threads: int | None = Field(None, ge=1)
    """On the CPU; unset: the cores, shared equally among the engines."""
    start_timeout_s: float = Field(1800, gt=0)
    silence_s: float = Field(30, gt=0)
    """How long the engine may write nothing, for any of its answers, while it has something to
    write; longer with prompts to read (`server.engines.silence`). Then it is dead (503), and
    started again."""
    resumable: bool = True
    """Whether what an answer's turns have read stays in the engine between them."""
    drafter: str | None = None
    """An aligned model of the same vocabulary that is to be in this engine too, for models that
    name it in ``fused``."""
    draft_tokens: int = Field(4, ge=1, le=32)
    """That it drafts at a time."""
    tokenizer: str | None = None
    revision: str | None = None
    dtype: str | None = None
    max_model_len: int | None = Field(None, ge=16)
    tensor_parallel_size: int | None = Field(None, ge=1)
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    kv_cache_memory_bytes: ByteSize | None = None
    quantization: str | None = None
    trust_remote_code: bool | None = None
    enforce_eager: bool | None = None
    args: dict[str, Any] = Field(default_factory=dict)

    def engine_args(self) -> dict[str, Any]:
        """What goes to ``AsyncEngineArgs``."""
        own = self.model_dump(exclude=set(OWN), exclude_none=True)
        if "kv_cache_memory_bytes" in own:
            own["kv_cache_memory_bytes"] = int(own["kv_cache_memory_bytes"])
        return {**own, **self.args}

    @property
    def second(self) -> str | None:
        return self.drafter

    @property
    def longer(self) -> int:
        return LONGER

    def gpus(self) -> list[str]:
        if self.device is not None:
            return [device.strip() for device in self.device.split(",")]
        return [str(index) for index in range(self._gpus_needed())]

    def threads(self, sharing: int) -> int:
        """How many it computes with on the CPU, where so many engines share the cores. Engines
        that together have more threads than there are cores wait for threads that aren't
        running."""
        return self.cpu_threads or max(1, len(os.sched_getaffinity(0)) // sharing)

    def _gpus_needed(self) -> int:
        parallel = (self.args.get(f"{kind}_parallel_size", 1) for kind in ("pipeline", "data"))
        return math.prod((self.tensor_parallel_size or 1, *(int(size) for size in parallel)))

    @model_validator(mode="after")
    def _fits(self) -> VllmSettings:
        twice = self.args.keys() & (type(self).model_fields.keys() - {"args"})
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: set it beside args, not inside")
        if self.drafter is None and "draft_tokens" in self.model_fields_set:
            raise ValueError("draft_tokens has no effect without a drafter")
        if self.drafter is not None and self.args.keys() & _FUSED:
            raise ValueError(f"{', '.join(sorted(_FUSED))} are the drafter's: not inside args")
        if self.device not in (None, "cpu") and len(self.gpus()) != self._gpus_needed():
            raise ValueError(
                f"device names {len(self.gpus())} GPUs ({self.device}), and "
                f"tensor_parallel_size asks for {self._gpus_needed()}"
            )
        return self


def _conflicts(engines: Mapping[str, VllmSettings]) -> Iterator[str]:
    """Engines that together ask for more than the whole of one GPU.

    An engine that sets ``kv_cache_memory_bytes`` is sized by that and has no share.
    """
    shares: dict[str, dict[str, float]] = {}
    for name, engine in engines.items():
        if engine.device == "cpu" or engine.kv_cache_memory_bytes:
            continue
        share = engine.gpu_memory_utilization or DEFAULT_MEMORY_SHARE
        for gpu in engine.gpus():
            shares.setdefault(gpu, {})[name] = share
    for device, wanted in shares.items():
        if sum(wanted.values()) > 1.0 + 1e-9:
            asked = " + ".join(f"{name} {share:g}" for name, share in wanted.items())
            yield (
                f"engines on GPU {device} ask for more than all of its memory: {asked} = "
                f"{sum(wanted.values()):g}. Set gpu_memory_utilization of each so that they sum "
                "to 0.95 at most (in proportion to the models' sizes), or give them devices of "
                f"their own. (Unset, an engine takes {DEFAULT_MEMORY_SHARE:g}.)"
            )


def _problems(engines: Mapping[str, VllmSettings]) -> Iterator[str]:
    """Engine arguments that vLLM doesn't have, or no vLLM at all."""
    try:
        known = build.engine_args()
    except ImportError:
        yield "vLLM is not installed: make the environment with scripts/env"
        return
    found = build.installed()
    for name, engine in engines.items():
        if engine.drafter is not None and not build.holds_pairs(getattr(found, "version", "")):
            yield (
                f"engines.{name}.drafter: two models in one engine are made for vLLM 0.32 and "
                f"0.33, and this is {getattr(found, 'version', 'another')}; leave drafter out"
            )
        for arg in sorted(engine.engine_args().keys() - known):
            meant = did_you_mean(arg, known)
            yield f"engines.{name}.args: vLLM has no engine argument {arg!r}{meant}"


VLLM = Backend(
    VllmSettings,
    start=later(f"{__package__}.starting", "start"),
    examine=later(f"{__package__}.examine", "examine"),
    hardware=later(f"{__package__}.starting", "hardware"),
    conflicts=_conflicts,
    problems=_problems,
)
