"""How a model's thoughts are marked off from what it says.

Knows: the marks, and which of them a chat template has. Does not know: prompts, how thoughts are
read from an answer (`server.decoding.thinking`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from server.core import InvalidRequest

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


_SWITCHES = ("enable_thinking", "thinking")
"""Variables of templates that turn thinking on and off."""

USUAL = "medium"


def effort_kwargs(effort: str, template: str, thoughts: Thoughts | None) -> dict[str, Any]:
    """The kwargs of a chat template that have its model think so much.

    Args:
        effort: ``none``, or OpenAI's name of a level. The usual one is that of a model that has
            none.

    Raises:
        InvalidRequest: nothing would come of it.
    """
    if re.search(r"\breasoning_effort\b", template):
        return {"reasoning_effort": effort}
    switch = next((each for each in _SWITCHES if re.search(rf"\b{each}\b", template)), None)
    if effort == "none" and (switch is not None or thoughts is None):
        return {} if switch is None else {switch: False}
    if thoughts is not None and effort == USUAL:
        return {} if switch is None else {switch: True}
    able = "can't be kept from thinking" if effort == "none" else "has no levels of reasoning"
    why = "doesn't reason" if thoughts is None else able
    raise InvalidRequest(
        f"'reasoning_effort': {effort!r} has no effect: the model {why}", param="reasoning_effort"
    )
