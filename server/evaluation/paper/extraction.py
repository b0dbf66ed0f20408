"""What an answer comes to, without a judge: a letter, yes or no, a date, a string.

Knows: how answers are worded. Does not know: judges; how the two agree is counted elsewhere. The
authors leave this to their judge, so these rules are our own.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable

from server.evaluation.data import LETTERS
from server.evaluation.paper.tasks import Extracted, Question
from server.evaluation.scorers import picked

_EMPHASIS = re.compile(r"[*_`$]|\\boxed|\\text")
_ANSWER = re.compile(
    r"\b(?:answer|result|conclusion|concatenat\w+)\b[^.\n:]{0,60}?(?:\bis\b|:|\bgives\b|\bget\b)",
    re.IGNORECASE,
)

_YES = r"yes|true|plausible|possible|correct|still heads up|is heads up"
_NO = (
    r"no|false|implausible|not plausible|not possible|incorrect|untrue|tails up|tails|"
    r"not (?:still )?heads up|no longer heads up|not true|not correct"
)
_YES_OR_NO = re.compile(rf"\b(?:(?P<no>{_NO})|(?P<yes>{_YES}))\b", re.IGNORECASE)

_MONTHS = {
    name: number
    for number in range(1, 13)
    for name in (
        datetime.date(2000, number, 1).strftime("%B").lower(),
        datetime.date(2000, number, 1).strftime("%b").lower(),
    )
}
_DATE = re.compile(
    r"(?P<m>\d{1,2})/(?P<d>\d{1,2})/(?P<y>\d{4})"
    r"|(?P<iy>\d{4})-(?P<im>\d{2})-(?P<id>\d{2})"
    r"|(?P<month>[A-Z][a-z]+)\.? (?P<day>\d{1,2})(?:st|nd|rd|th)?,? (?P<year>\d{4})"
    r"|(?P<day2>\d{1,2})(?:st|nd|rd|th)?(?: of)? (?P<month2>[A-Z][a-z]+),? (?P<year2>\d{4})"
)

_QUOTED = re.compile(r"[\"'“]([A-Za-z](?:[ ,-]{0,2}[A-Za-z])*)[\"'”]")
_SPELLED = re.compile(r"\b[A-Za-z](?:(?:[ -]|, ?)[A-Za-z])+\b(?![A-Za-z])|\b[A-Za-z]+\b")


def extracted(kind: Extracted, answer: str, question: Question) -> float | None:
    """Whether it is right: 1 or 0; None where nothing is found."""
    text = _EMPHASIS.sub("", answer)
    found = _RULES[kind](text, question)
    return None if found is None else float(found == _gold(kind, question))


def _gold(kind: Extracted, question: Question) -> str | None:
    if kind == "letter":
        return question.gold.split(".")[0]
    return _RULES[kind](question.gold, question)


def _said(text: str) -> str:
    """What stands behind the last "the answer is"; "" where that isn't said."""
    marks = list(_ANSWER.finditer(text))
    return text[marks[-1].end() :] if marks else ""


def letter(text: str, question: Question) -> str | None:
    """The one that is said to be the answer, the one it begins with, the last one that is called
    an option, or the one whose text it names."""
    one = f"([{''.join(question.labels)}])"
    said = re.match(rf"\W*(?:option |choice )?\W*{one}\b", _said(text))
    first = re.match(rf"\W*{one}(?:[.):,]|\s*\Z)", text)
    if found := said or first:
        return found[1]
    if options := re.findall(rf"\b(?:option|choice)\W+{one}\b", text):
        return str(options[-1])
    lettered = "".join(question.labels) in LETTERS  # of others `picked` can't name the text's
    place = picked(text, question.choices) if lettered else None
    return None if place is None else question.labels[place]


def yes_no(text: str, question: Question) -> str | None:
    """What is said to be the answer, or the answer's first word, or the last such word in it."""
    said = _YES_OR_NO.search(_said(text).split("\n\n")[0])
    first = _YES_OR_NO.match(text.lstrip())
    every = list(_YES_OR_NO.finditer(text))
    found = said or first or (every[-1] if every else None)
    return None if found is None else "no" if found["no"] else "yes"


def date(text: str, question: Question) -> str | None:
    """The last date, the one behind "the answer is" first."""
    for part in (_said(text), text):
        dates = [found for each in _DATE.finditer(part) if (found := _as_date(each))]
        if dates:
            return dates[0] if part is not text else dates[-1]
    return None


def _as_date(found: re.Match[str]) -> str | None:
    year = found["y"] or found["iy"] or found["year"] or found["year2"]
    day = found["d"] or found["id"] or found["day"] or found["day2"]
    named = found["month"] or found["month2"]
    month = _MONTHS.get(named.lower()) if named else int(found["m"] or found["im"])
    return f"{month:02d}/{int(day):02d}/{year}" if month else None


def string(text: str, question: Question) -> str | None:
    """The last string in quotes behind "the answer is", the last word of that sentence, or the
    last string in quotes."""
    sentence = re.split(r"[.\n](?:\s|$)", _said(text).strip() or "", maxsplit=1)[0]
    if quoted := _QUOTED.findall(sentence):
        return _joined(quoted[-1])
    if words := _SPELLED.findall(sentence):
        return _joined(words[-1])
    if quoted := _QUOTED.findall(text):
        return _joined(quoted[-1])
    words = _SPELLED.findall(text)
    return _joined(words[-1]) if words else None


def _joined(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())


_RULES: dict[Extracted, Callable[[str, Question], str | None]] = {
    "letter": letter,
    "yes_no": yes_no,
    "date": date,
    "string": string,
}
