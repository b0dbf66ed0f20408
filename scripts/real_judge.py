"""Whether an answer of the real pair is good: by rules, without a model that judges.

Knows: the rules of docs/evaluation/real-pair/questions.jsonl, what a written next turn, a loop and
litter look like. Does not know: the server, systems, files.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

# A header at the beginning of a line, as prompts and transcripts have it.
HEADER = re.compile(
    r"^[ \t*#>]*(?:Question|Answer|Q|A|User|Assistant|Human|AI|Bot|Instruction|Response|System"
    r"|Frage|Antwort|Pregunta|Respuesta|R[ée]ponse|Domanda|Risposta)[ \t*]*:",
    re.MULTILINE,
)
LITTER = re.compile(
    r"<\|\w+\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos|pad|unk)>|\N{REPLACEMENT CHARACTER}"
)
AGAIN = re.compile(r"(.{12,}?)\1\1", re.DOTALL)
# What ends an answer without one of its models having ended it.
GUARDS = ("repetition", "repeated_round")


@dataclass(frozen=True)
class Verdict:
    """On one answer."""

    ended: bool  # by a model's own end, or a stop string that was asked for
    right: bool  # what stands before a next turn
    next_turn: bool  # it goes on to another question or answer
    loops: bool  # a sentence three times, or the same text three times running
    litter: bool  # empty, a header in front, control tokens spelled as text, broken characters

    @property
    def good(self) -> bool:
        return self.ended and self.right and not (self.next_turn or self.loops or self.litter)


def loops(text: str) -> bool:
    sentences = re.split(r"[.!?]\s+|[.!?]?$|\n", text, flags=re.MULTILINE)
    counted = Counter(" ".join(each.lower().split()) for each in sentences)
    if any(times >= 3 for each, times in counted.items() if len(each) >= 8 and " " in each):
        return True
    return any(re.search(r"\w\w", found[1]) for found in AGAIN.finditer(text))


def has_words(text: str, wanted: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", text, re.IGNORECASE))


def is_right(text: str, rules: dict[str, Any]) -> bool:
    """All rules hold. ``any``: one of these words stands in it; ``all``: of each entry one
    (``a|b``); ``regex``, ``cased``: it is found, over lines; ``words``: at least and at most.
    """
    for rule, value in rules.items():
        match rule:
            case "any":
                holds = any(has_words(text, each) for each in value)
            case "all":
                holds = all(any(has_words(text, w) for w in each.split("|")) for each in value)
            case "regex":
                holds = bool(re.search(value, text, re.IGNORECASE | re.DOTALL | re.MULTILINE))
            case "cased":
                holds = bool(re.search(value, text, re.DOTALL))
            case "words":
                holds = value[0] <= len(text.split()) <= value[1]
            case _:
                raise ValueError(f"no such rule: {rule}")
        if not holds:
            return False
    return True


def judge(text: str, finish_reason: str, stop_reason: str, rules: dict[str, Any]) -> Verdict:
    text = text.strip()
    headers = [found.start() for found in HEADER.finditer(text)]
    later = [start for start in headers if start > 0]
    own = text[: later[0]] if later else text
    return Verdict(
        ended=finish_reason == "stop" and stop_reason not in GUARDS,
        right=is_right(LITTER.sub(" ", own).strip(), rules),
        next_turn=bool(later),
        loops=loops(text),
        litter=not text or 0 in headers or bool(LITTER.search(text)),
    )


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not of:
        return 0.0, 1.0
    z, share = 1.96, hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, middle - half), min(1.0, middle + half)
