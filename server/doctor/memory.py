"""Who gets how much of a device's memory, and how many chats that holds: an estimate.

An engine's share of a device (``gpu_memory_utilization``) holds its weights, an allowance for
computing, and with all that is left its KV cache; ``kv_cache_memory_bytes`` is the cache's own
size instead. Every token of a chat takes the same. Does not know: files, configurations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from server.engines.machine import Memory, Tenant
from server.engines.report import Notes, gib

HEADROOM = 0.95
"""What engines may have of a device together."""


@dataclass(frozen=True, slots=True)
class Device:
    """name: as people say it. memory: None where unknown."""

    name: str
    memory: Memory | None
    tenants: tuple[Tenant, ...]


def examine(devices: Sequence[Device], chats: int, notes: Notes) -> None:
    """Notes what doesn't fit; of an engine on several GPUs once."""
    told: set[str] = set()
    for device in devices:
        before = len(notes)
        if device.memory is None:
            unknown = "its size isn't known here: only the engines' needs can be told"
            notes.warn(device.name, unknown, "Say it with --gpu-memory, for instance 24GiB")
            continue
        advice = _advice(device, device.memory.total, chats)
        for each in device.tenants:
            if each.name not in told and _one(device.name, each, chats, advice, notes):
                told.add(each.name)
        _all(device, device.memory, advice, notes)
        held = [each.chats for each in device.tenants if each.chats is not None]
        if len(notes) == before and held:
            fit = f"about {min(held)} such chats fit at once ({chats} were asked for)"
            notes.ok(device.name, fit)


def _one(device: str, each: Tenant, chats: int, advice: str, notes: Notes) -> bool:
    """Whether something was noted."""
    weights, given = each.weights or 0, each.given or 0
    needed = each.kept(chats) + (0 if each.sized else weights + each.allowance)
    if needed <= given:
        return False
    besides = "" if each.sized else f" with weights ({gib(weights)}) and computing"
    text = f"{chats} chats of {each.chat} tokens take about {gib(needed)} of {device}{besides}, "
    text += f"{gib(needed - given)} more than it is given: {each.chats or 0} fit"
    if each.tokens is not None and each.tokens < each.context:
        text += f", and no context of {each.context} tokens, without which vLLM doesn't start"
        if each.tokens >= 16:  # the least that vLLM's settings take
            most = min(each.tokens, each.longest or each.tokens)
            advice = f"Set max_model_len to {most} at most. Or: {advice}"
    certain = each.exact and not each.sized and weights > given
    (notes.fail if certain else notes.warn)(f"engines.{each.name}", text, advice)
    return True


def _all(device: Device, memory: Memory, advice: str, notes: Notes) -> None:
    sized = [each for each in device.tenants if each.sized]
    asked = sum(each.given or 0 for each in device.tenants) + sum(e.weights or 0 for e in sized)
    over, total = asked + sum(each.allowance for each in sized) - memory.total, gib(memory.total)
    if over > 0:
        certain = asked > memory.total and all(each.exact for each in sized)
        much = f"its engines ask for {gib(memory.total + over)} of {total}: {gib(over)} too much"
        (notes.fail if certain else notes.warn)(device.name, much, advice)
    elif memory.free is not None and asked > memory.free:
        free = f"its engines ask for {gib(asked)}, and {gib(memory.free)} of {total} are free"
        notes.warn(device.name, free, "End what else uses it, if it isn't this server itself")


def _advice(device: Device, total: int, chats: int) -> str:
    """Settings with which so many chats fit, or what else can be changed."""
    settings, over = [], -total * HEADROOM
    for each in device.tenants:
        cache = each.kept(chats)
        whole = cache + (each.weights or 0) + each.allowance
        over += whole
        if each.sized or device.name == "the CPU":
            settings.append(f"kv_cache_memory_bytes of {each.name} to {ceil(cache / 2**20)}MiB")
        else:
            share = ceil(100 * whole / total) / 100
            settings.append(f"gpu_memory_utilization of {each.name} to {share:.2f}")
    if over <= 0:
        return f"Set {' and '.join(settings)}"
    return (
        "Take a larger device, one for each engine, quantized weights, a lower max_model_len or "
        f"fewer chats: {chats} of them would take {gib(over)} more than there is"
    )
