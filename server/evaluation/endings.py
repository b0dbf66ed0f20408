"""How an answer ended, and what is wrong with how it went on.

Knows: stop reasons, and how a base prompt's template begins a turn. Does not know: who answered,
scores, reports.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import jinja2

from server.core import Message
from server.text.prompts import base_template

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

_MARKS = ("\uf5d2", "\uf5d3", "\uf5d4")
"""Private-use characters, which no template has: a question, an answer, the next question."""

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
    """Whether it writes the next turn of its own prompt."""
    return any(header in text for header in headers)


def headers(base_prompt: str | None, prefix: str = "") -> tuple[str, ...]:
    """How the turns behind an answer begin in the base model's prompt, as in ("\\nQuestion:",
    "\\nAnswer:"); none where the template writes nothing between turns.

    Args:
        base_prompt: the template; None: the default.
        prefix: with which every question begins.

    Raises `ConfigError`.
    """
    first, answer, second = _MARKS
    turns = (
        Message("user", prefix + first),
        Message("assistant", answer),
        Message("user", prefix + second),
    )
    try:
        text = base_template(base_prompt).render(
            system="",
            turns=turns,
            messages=turns,
            question=turns[-1].content,
            add_generation_prompt=True,
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError):
        return ()  # a template that refuses several turns
    behind = text.partition(answer)[2].partition(second)[0]
    before = text.partition(second)[2]
    # What stands in the question's own line is no header: " A:" is in "USA: …".
    found = [_header(behind), _header(before) if before.lstrip(" ").startswith("\n") else ""]
    return tuple(dict.fromkeys(header for header in found if header))


def _header(between: str) -> str:
    """The first line of what stands between two texts, with the line break before it."""
    words = between.strip()
    blank = between[: len(between) - len(between.lstrip())]
    return ("\n" if "\n" in blank else "") + words.split("\n")[0].rstrip() if words else ""
