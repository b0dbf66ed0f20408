"""How a model's thoughts are marked off from what it says.

Knows: the marks, and which of them a chat template has. Does not know: prompts, how thoughts are
read from an answer (`server.decoding.thinking`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ThoughtName = Literal["think", "think_brackets", "seed"]


@dataclass(frozen=True, slots=True)
class Thoughts:
    """One row: what stands in front of thoughts, and behind them."""

    name: ThoughtName
    opens: str
    closes: str


_ROWS = (
    Thoughts("think", "<think>", "</think>"),  # DeepSeek R1, Qwen 3 and their kin
    Thoughts("think_brackets", "[THINK]", "[/THINK]"),  # Magistral
    Thoughts("seed", "<seed:think>", "</seed:think>"),  # Seed-OSS
)

THOUGHTS: dict[ThoughtName, Thoughts] = {row.name: row for row in _ROWS}


def found(template: str) -> Thoughts | None:
    """The marks that a chat template has; None: its model doesn't think."""
    return next((row for row in _ROWS if row.closes in template or row.opens in template), None)
