"""The machine: its GPUs, its memory, and what is installed on it; and what an engine takes of it.

Knows: how to ask for these in milliseconds, without importing torch or vLLM. Does not know: what
a configuration wants of them, or whether that fits.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.engines.vllm.build import Vllm, installed


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

    def memory(self, device: str) -> Memory | None:
        """Of a GPU by its index, or of the "cpu"; None where unknown."""
        return self.ram if device == "cpu" else self.gpus.get(device)


@dataclass(frozen=True, slots=True)
class Tenant:
    """An engine on a device. Sizes in bytes, on this device alone; None: not known.

    exact: whether ``weights`` were counted. token: of KV cache. context, chat: tokens. given: to
    its cache where ``sized``, otherwise to all of it. longest: context that its model was made for.
    """

    name: str
    weights: int | None
    exact: bool
    allowance: int
    token: int | None
    context: int
    chat: int
    given: int | None
    sized: bool
    longest: int | None = None

    @property
    def cache(self) -> int | None:
        if self.sized or self.given is None or self.weights is None:
            return self.given if self.sized else None
        return max(0, self.given - self.weights - self.allowance)

    @property
    def tokens(self) -> int | None:
        """That the cache holds."""
        return None if self.cache is None or not self.token else self.cache // self.token

    @property
    def chats(self) -> int | None:
        return None if self.tokens is None else self.tokens // self.chat

    def kept(self, chats: int) -> int:
        """Bytes of cache for so many chats, and for one whole context in any case."""
        return max(chats * self.chat, self.context) * (self.token or 0)


def look() -> Machine:
    """This machine."""
    try:
        numa = bool(ctypes.CDLL("libnuma.so.1"))
    except OSError:
        numa = False
    return Machine(installed(), _gpus(), _ram(), numa=numa)


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
