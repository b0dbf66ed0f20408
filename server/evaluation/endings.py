"""How an answer ended, and what is wrong with how it went on.

Knows: stop reasons, and how the next turn of a prompt is found. Does not know: who answered,
scores, reports.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from server.text.headers import TurnHeaders

BY_ITSELF = frozenset({"aligned_end", "end_of_text", "nudging_model_stop"})
"""Stop reasons of an answer that a model ended. The others cut it."""

GUARDED = frozenset({"repeated_round", "repetition", "repeated_nudging_words"})
"""Of an answer that a loop guard cut."""

AT_STOP = frozenset({"stop_string", "stop_token"})
"""Of an answer that was cut at a stop string."""

TOO_LONG = frozenset({"length", "context", "max_rounds", "round"})
"""Of an answer that a limit cut."""

TIMES = 3
"""A sentence said so often is a loop."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_SHORT = 8
"""Characters up to which a sentence may be said again: "Yes.", "1."."""


def looped(text: str, stop_reason: str) -> bool:
    """Whether a loop guard cut it, or it says one sentence three times."""
    if stop_reason in GUARDED:
        return True
    said = Counter(" ".join(part.split()) for part in _SENTENCE_END.split(text))
    return any(count >= TIMES and len(part) > _SHORT for part, count in said.items())


def next_turn(text: str, headers: Sequence[str]) -> bool:
    """Whether it writes the next turn of its own prompt. headers: as in `server.text.headers`."""
    turns = TurnHeaders(headers)
    turns.hear("the prompt's last line")  # at an answer's very beginning none is the next
    turns.push(text)
    return turns.found
