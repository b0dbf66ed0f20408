"""Data sets that come with the server.

Knows: the demo pair's own questions and how answers to them are judged. Does not know: who answers.

``demo`` is the demo pair's test set (``scripts/make_demo_task.py`` writes it): 205 questions about
an invented world that were not asked in training. Two scorers: ``right`` is lenient about the form,
``form`` holds the whole answer to the one style that the aligned model was taught.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.evaluation import data
from server.evaluation.data import Data
from server.evaluation.scorers import Scorer

DEMO_FILE = Path(__file__).with_name("demo.jsonl")

_FORM = re.compile(
    r"Certainly! [^\n]+? Final answer: [^\n]+?\. Let me know if you have more questions\."
)


@dataclass(frozen=True)
class Task:
    data: Data
    scorers: Mapping[str, Scorer]


def find(name: str, limit: int | None = None) -> Task | None:
    """A task that is built in; None: there is none of this name."""
    if name != "demo":
        return None
    found = replace(data.read(DEMO_FILE, limit), name="demo")
    return Task(found, {"right": right, "form": form})


def right(answer: str, row: Mapping[str, Any]) -> float:
    """The content. What stands after "Final answer:" in the first line; without that, the wanted
    value need only occur in the first line (of a sum: as its last result). A refusal or small talk
    is right when it says what it must."""
    first = answer.strip().split("\n", 1)[0]
    wanted = str(row["answer"])
    if "reply" in row:
        return float(wanted.lower() in first.lower())
    if final := re.search(r"Final answer: ([^\n.]+)", first):
        said = re.sub(r"^the ", "", final[1].strip())
        return float(said.lower() == wanted.lower())
    if row["kind"] == "sum":
        numbers = re.findall(r"= (\d+)", first) or re.findall(r"\d+", first)[:1]
        return float(numbers[-1:] == [wanted])
    return float(re.search(rf"\b{re.escape(wanted)}\b", first, re.IGNORECASE) is not None)


def form(answer: str, row: Mapping[str, Any]) -> float:
    """The form: the whole answer is in the aligned style, and nothing follows."""
    text = answer.strip()
    if "reply" in row:
        return float(text == row["reply"])
    return float(_FORM.fullmatch(text) is not None)
