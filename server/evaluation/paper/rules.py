"""The authors' rule for sums: the answer's last number is the gold answer's last number.

Knows: how they read numbers (the function for math problems in fywalter/nudging). Does not know:
tasks, judges.
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d*)?")


def numbers(text: str) -> list[str]:
    """As they are compared: without commas, a whole number without its point. Signs don't count."""
    return [_plain(found) for found in _NUMBER.findall(text)]


def last_number(answer: str, gold: str) -> float:
    """1 where they are the same."""
    said, wanted = numbers(answer), numbers(gold)
    return float(bool(said) and bool(wanted) and said[-1] == wanted[-1])


def _plain(found: str) -> str:
    value = float(found.replace(",", "").removesuffix("."))
    return str(int(value)) if value.is_integer() else str(value)
