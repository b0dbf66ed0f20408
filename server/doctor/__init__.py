"""``nudge doctor``: what would go wrong with a configuration, told before any weight is loaded.

Knows: which checks there are, and in which order. Does not know: how findings are shown; what a
backend looks at in its engines; torch and vLLM, which take seconds to import. (transformers brings
torch along for the tokenizers.)
"""

from __future__ import annotations

from dataclasses import dataclass

from server.config import ServerSettings, Settings
from server.doctor import memory, pair, settings
from server.doctor.memory import Device
from server.engines import backends
from server.engines.backend import Examined
from server.engines.machine import Machine
from server.engines.report import Finding, Notes

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
    notes = Notes()
    for problem in settings.problems(configuration):
        notes.fail("", problem)
    _openness(configuration.server, notes)
    found: dict[str, Examined] = {}
    for backend, engines in backends.grouped(configuration.engines):
        found |= backend.examine(engines, machine, length, notes)
    for name, model in configuration.models.items():
        pair.examine(name, model, configuration.engines, found, notes)
    tenants = [(device, each) for its in found.values() for device, each in its.tenants.items()]
    plan = [
        Device(
            "the CPU" if device == "cpu" else f"GPU {device}",
            machine.memory(device),
            tuple(each for on, each in tenants if on == device),
        )
        for device in dict.fromkeys(device for device, _ in tenants)
    ]
    memory.examine(plan, chats, notes)
    return Report(tuple(notes), tuple(plan))


def _openness(server: ServerSettings, notes: Notes) -> None:
    here = server.host in ("127.0.0.1", "localhost", "::1")
    if not (here or server.api_keys or server.api_keys_file):
        heard = f"it listens on {server.host} and has no keys: who reaches it can use it"
        set_ = "Set api_keys or api_keys_file, unless something in front of it asks for keys"
        notes.warn("server", heard, set_)
