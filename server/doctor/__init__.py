"""``nudge doctor``: what would go wrong with a configuration, told before any weight is loaded.

Knows: which checks there are, and in which order. Does not know: how findings are shown; torch
and vLLM, which take seconds to import. (transformers brings torch along for the tokenizers.)
"""

from __future__ import annotations

from dataclasses import dataclass

from server.config import VLLM_DEFAULT_MEMORY_SHARE, EngineSettings, ServerSettings, Settings
from server.doctor import memory, models, pair, settings
from server.doctor.machine import Machine
from server.doctor.memory import Device, Tenant
from server.doctor.models import Model
from server.doctor.report import Finding, Notes

CHATS, LENGTH = 16, 2048
"""What the memory plan is made for, where nobody says."""


@dataclass(frozen=True, slots=True)
class Report:
    """findings: in the order of the checks. devices: the memory plan."""

    findings: tuple[Finding, ...]
    devices: tuple[Device, ...] = ()

    @property
    def ok(self) -> bool:
        return all(finding.level != "error" for finding in self.findings)


def examine(
    configuration: Settings, machine: Machine, *, chats: int = CHATS, length: int = LENGTH
) -> Report:
    """Everything that can be checked without loading a weight.

    Args:
        chats, length: how many chats of how many tokens the memory plan is made for.
    """
    notes, engines = Notes(), configuration.engines
    for problem in settings.problems(configuration):
        notes.fail("", problem)
    _openness(configuration.server, notes)
    vllm = {name: engine for name, engine in engines.items() if engine.backend == "vllm"}
    if scripted := ", ".join(name for name in engines if name not in vllm):
        notes.warn("engines", f"{scripted}: scripted, they play a text", "For tests alone")
    placed = {name: _placed(name, engine, machine, notes) for name, engine in vllm.items()}
    if ["cpu"] in placed.values() and not machine.numa:
        missing = "libnuma.so.1 is missing, which vLLM's CPU build is linked against"
        notes.fail("engines", missing, "On Debian: apt-get install libnuma1")
    found = {name: models.examine(name, engine, notes) for name, engine in engines.items()}
    for name, model in configuration.models.items():
        pair.examine(name, model, found, notes)
    plan = []
    for device in dict.fromkeys(device for its in placed.values() for device in its):
        size = machine.ram if device == "cpu" else machine.gpus.get(device)
        total = None if size is None else size.total
        tenants = [
            _tenant(name, engine, found[name], length, total, device == "cpu")
            for name, engine in vllm.items()
            if device in placed[name]
        ]
        plan.append(Device("the CPU" if device == "cpu" else f"GPU {device}", size, tuple(tenants)))
    memory.examine(plan, chats, notes)
    return Report(tuple(notes), tuple(plan))


def _openness(server: ServerSettings, notes: Notes) -> None:
    here = server.host in ("127.0.0.1", "localhost", "::1")
    if not (here or server.api_keys or server.api_keys_file):
        heard = f"it listens on {server.host} and has no keys: who reaches it can use it"
        set_ = "Set api_keys or api_keys_file, unless something in front of it asks for keys"
        notes.warn("server", heard, set_)


def _placed(name: str, engine: EngineSettings, machine: Machine, notes: Notes) -> list[str]:
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


def _tenant(
    name: str, engine: EngineSettings, model: Model, length: int, total: int | None, on_cpu: bool
) -> Tenant:
    weights, cache = model.weights, engine.kv_cache_memory_bytes
    share = engine.gpu_memory_utilization or VLLM_DEFAULT_MEMORY_SHARE
    context = model.context or length
    parts = len(engine.gpus()) // int(engine.args.get("data_parallel_size", 1))
    return Tenant(
        name=name,
        weights=None if weights is None else weights.size // parts,
        exact=weights is not None and weights.exact and not engine.quantization,  # as it is loaded
        allowance=memory.CPU_ALLOWANCE if on_cpu else memory.GPU_ALLOWANCE,
        token=model.token,
        context=context,
        chat=min(length, context),
        given=int(cache or (total or 0) * share) or None,
        sized=bool(cache),
    )
