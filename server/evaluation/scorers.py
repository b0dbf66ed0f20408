"""How good an answer is: a number from 0 to 1.

Knows: answers and rows of data. Does not know: who answered.

A scorer is a function of the answer's text and its row. ``row["answer"]`` may be a list, of which
any one will do.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from server.evaluation.data import LETTERS, EvaluationError, Item

Scorer: TypeAlias = Callable[[str, Mapping[str, Any]], float]
"""(the answer's text, its row) → 0 to 1; True and False will do."""

_NUMBER = re.compile(r"[-+\N{MINUS SIGN}]?\d[\d,]*(?:\.\d+)?|[-+\N{MINUS SIGN}]?\.\d+")
_SAYS_ANSWER = re.compile(r"####|\banswer\b(?:\s+is)?\s*:?", re.IGNORECASE)


def exact(answer: str, row: Mapping[str, Any]) -> float:
    """The whole answer is the wanted one; case, spaces and a last full stop don't count."""
    return float(any(_plain(answer) == _plain(wanted) for wanted in _wanted(row)))


def contains(answer: str, row: Mapping[str, Any]) -> float:
    """The wanted text stands in the answer, as whole words; case and spaces don't count."""
    text = _plain(answer)
    return float(
        any(re.search(rf"(?<!\w){re.escape(_plain(w))}(?!\w)", text) for w in _wanted(row))
    )


def number(answer: str, row: Mapping[str, Any]) -> float:
    """The answer's number is the wanted one: the first after its last "answer" (or "####"), or
    its last number."""
    said = said_number(answer)
    return float(said is not None and any(said == to_number(wanted) for wanted in _wanted(row)))


def choice(answer: str, row: Mapping[str, Any]) -> float:
    """The answer picks the wanted one of ``choices``: by its letter, or by its text alone.

    ``row["answer"]`` is the letter, the text, or the place from 0.
    """
    if "choices" not in row:
        raise EvaluationError("the row has no 'choices'")
    choices = row["choices"]
    place = picked(answer, choices)
    return float(any(place == _place(wanted, choices) for wanted in _wanted(row)))


def by_row(answer: str, row: Mapping[str, Any]) -> float:
    """``choice`` where the row has ``choices``; ``number`` where its answer is one; ``contains``
    otherwise."""
    return BUILT_IN[_suited(row)](answer, row)


BUILT_IN: dict[str, Scorer] = {
    "exact": exact,
    "contains": contains,
    "number": number,
    "choice": choice,
    "by_row": by_row,
}


def _suited(row: Mapping[str, Any]) -> str:
    if "choices" in row:
        return "choice"
    return "number" if all(to_number(each) is not None for each in _wanted(row)) else "contains"


def default(items: Sequence[Item]) -> str | None:
    """The name of the scorer that suits some data; None where it has no answers."""
    if not all("answer" in item.row for item in items):
        return None
    suited = {_suited(item.row) for item in items}
    if len(suited) == 1:
        return suited.pop()
    return "by_row" if "choice" in suited else "contains"


def check(name: str, items: Sequence[Item]) -> None:
    """Raises `EvaluationError` where a scorer that is built in can't judge a row: before anything
    is answered."""
    needs = {"choice": ("answer", "choices")}.get(name, ("answer",))
    for item in items if name in BUILT_IN else ():
        if lacking := [key for key in needs if key not in item.row]:
            advice = "; leave --scorer out, and each row has the one that suits it"
            raise EvaluationError(
                f"row {item.number + 1} has no {lacking[0]!r}, which the scorer {name!r} needs"
                + (advice if lacking[0] == "choices" else "")
            )


def find(name: str) -> Scorer:
    """A scorer: one that is built in, ``module:function``, or ``path/to/file.py:function``.

    Raises `EvaluationError`.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    place, colon, function = name.rpartition(":")
    if not colon:
        raise EvaluationError(
            f"there is no scorer {name!r} (there are {', '.join(BUILT_IN)}; one of your own is "
            "module:function or path/to/file.py:function)"
        )
    try:
        found = getattr(_module(place), function)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise EvaluationError(f"the scorer {name!r} can't be loaded: {error}") from None
    if not callable(found):
        raise EvaluationError(f"the scorer {name!r} is no function")
    scorer: Scorer = found
    return scorer


def score(name: str, scorer: Scorer, answer: str, item: Item) -> float:
    """Raises `EvaluationError` where the scorer can't make sense of a row."""
    try:
        value = float(scorer(answer, item.row))
    except Exception as error:
        raise EvaluationError(
            f"the scorer {name!r} failed on row {item.number + 1}: {type(error).__name__}: {error}"
        ) from error
    if not 0 <= value <= 1:
        raise EvaluationError(
            f"the scorer {name!r} gave {value:g} for row {item.number + 1}; it must be 0 to 1"
        )
    return value


def said_number(answer: str) -> Decimal | None:
    """The number that an answer arrives at."""
    marks = list(_SAYS_ANSWER.finditer(answer))
    if marks and (found := _NUMBER.search(answer, marks[-1].end())):
        return to_number(found[0])
    numbers = _NUMBER.findall(answer)
    return to_number(numbers[-1]) if numbers else None


def to_number(value: Any) -> Decimal | None:
    """A number as it may be written: "1,200", "$3.50", "12 %"."""
    if isinstance(value, bool):
        return None
    text = str(value).strip("$€£% \n\t").rstrip(".").replace(",", "").replace("\N{MINUS SIGN}", "-")
    try:
        found = Decimal(text)
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


def _module(place: str) -> ModuleType:
    path = Path(place)
    if path.suffix != ".py":
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(f"scorer_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as an import would: dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _wanted(row: Mapping[str, Any]) -> Iterator[Any]:
    if "answer" not in row:
        raise EvaluationError("the row has no 'answer'")
    answer = row["answer"]
    yield from answer if isinstance(answer, list) else [answer]


def _plain(value: Any) -> str:
    return " ".join(str(value).casefold().split()).rstrip(".")


def _place(wanted: Any, choices: Sequence[str]) -> int:
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        return wanted
    plain = [_plain(each) for each in choices]
    if _plain(wanted) in plain:
        return plain.index(_plain(wanted))
    letter = str(wanted).strip().upper()
    if letter in LETTERS[: len(choices)] and letter:
        return LETTERS.index(letter)
    raise EvaluationError(f"the answer {wanted!r} is none of the choices")


def picked(answer: str, choices: Sequence[str]) -> int | None:
    """The choice that an answer names, in this order: a letter said to be the answer, a letter at
    the beginning, one letter in brackets, the text of one choice and no other."""
    letters = LETTERS[: len(choices)]
    said = re.findall(rf"(?i:\banswer\b(?:\s+is)?)\s*:?\s*\W?([{letters}])\b", answer)
    first = re.findall(rf"\A\W*([{letters}])(?:[.):,]|\s*\Z)", answer)
    bracketed = sorted(set(re.findall(rf"\(([{letters}])\)", answer)))
    for found in (said[-1:], first if len(bracketed) < 2 else [], bracketed):
        if len(found) == 1:
            return LETTERS.index(found[0])
    named = [n for n, each in enumerate(choices) if contains(answer, {"answer": each})]
    return named[0] if len(named) == 1 else None
