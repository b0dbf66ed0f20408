"""What the doctor found: findings of three levels, each with what to do about it.

Knows: how findings are collected. Does not know: any check, how they are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    level: ``error`` where the server could not start or a model could not answer. where: the
    place in the configuration, or the device. advice: what to do next; empty for ``ok``.
    """

    level: Level
    where: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        told = f"{self.where}: {self.text}" if self.where else self.text
        return f"{told}. {self.advice}" if self.advice else told


class Notes:
    """Findings as they come, in order."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def ok(self, where: str, text: str) -> None:
        self.findings.append(Finding("ok", where, text))

    def warn(self, where: str, text: str, advice: str = "") -> None:
        self.findings.append(Finding("warning", where, text, advice))

    def fail(self, where: str, text: str, advice: str = "") -> None:
        self.findings.append(Finding("error", where, text, advice))

    def of(self, level: Level) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == level]
