"""What the paper's evaluation came to: scores by task and system, and what follows from them.

Knows: the tasks' scorers, statistics. Does not know: who answers and judges how, wording, plots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.evaluation.agreement import Position
from server.evaluation.figures import Figures, Scores, figures
from server.evaluation.paper.extraction import extracted
from server.evaluation.paper.judge import Judge
from server.evaluation.paper.rows import Asked
from server.evaluation.paper.rules import last_number
from server.evaluation.runs import Answer
from server.evaluation.statistics import Caught, Estimate, caught, paired, stratified

REFERENCES = ("base", "aligned", "large_aligned")
"""To whom the others' differences are told, where they take part."""

GAMMAS = tuple(n / 20 for n in range(21))


@dataclass(frozen=True)
class Agreed:
    """A judge and the extraction, over the answers of all systems. Shares."""

    answers: int
    judged_right: float
    extracted_right: float
    agree: float
    nothing_extracted: float


@dataclass(frozen=True)
class Outcome:
    """One task.

    scored_by: the scorer that counts: ``rule``, ``judge``, ``extracted``, or ``mean`` of the
        aspects; None: it takes a judge, and there was none.
    figures: by system. values: by system, of the scorer that counts. positions: where the models
        disagree; None: it wasn't asked.
    """

    task: str
    questions: int
    scored_by: str | None
    rated: bool
    figures: Mapping[str, Figures]
    values: Mapping[str, Sequence[float]]
    agreed: Agreed | None
    positions: Sequence[Position] | None

    def difference(self, system: str, reference: str) -> Estimate:
        return paired(self.values[system], self.values[reference])


def outcome(
    asked: Asked,
    given: Mapping[str, Sequence[Answer]],
    judge: Judge | None,
    positions: Sequence[Position] | None,
) -> Outcome:
    """
    Args:
        given: by system, in the order of the questions. judge: has judged them all.
    """
    scores = {name: scored(asked, answers, judge) for name, answers in given.items()}
    counts = next(iter(next(iter(scores.values()))), None)
    found = {
        name: figures(name, answers, asked.data, scores[name]) for name, answers in given.items()
    }
    return Outcome(
        asked.task.name,
        len(asked.questions),
        counts,
        bool(asked.task.aspects),
        found,
        {name: scores[name][counts] for name in given} if counts else {},
        _agreed(asked, given, scores),
        positions,
    )


def scored(asked: Asked, answers: Sequence[Answer], judge: Judge | None) -> Scores:
    """By scorer; the one that counts first."""
    task = asked.task
    pairs = list(zip(asked.questions, answers, strict=True))
    found: dict[str, list[float]] = {}
    if task.judge is None:
        return {"rule": [last_number(answer.text, question.gold) for question, answer in pairs]}
    if judge is not None:
        said = [judge.judgement(task, question, answer.text).scores for question, answer in pairs]
        if task.aspects:
            found["mean"] = [sum(each.values()) / len(each) for each in said]
            found |= {aspect: [float(each[aspect]) for each in said] for aspect in task.aspects}
        else:
            found["judge"] = [float(each["correct"]) for each in said]
    if task.extracted is not None:
        found["extracted"] = [
            extracted(task.extracted, answer.text, question) or 0.0 for question, answer in pairs
        ]
    return found


def _agreed(
    asked: Asked, given: Mapping[str, Sequence[Answer]], scores: Mapping[str, Scores]
) -> Agreed | None:
    kind = asked.task.extracted
    if kind is None or not all("judge" in each for each in scores.values()):
        return None
    judged = [value for each in scores.values() for value in each["judge"]]
    right = [value for each in scores.values() for value in each["extracted"]]
    nothing = [
        extracted(kind, answer.text, question) is None
        for answers in given.values()
        for question, answer in zip(asked.questions, answers, strict=True)
    ]
    count = len(judged)
    return Agreed(
        count,
        sum(judged) / count,
        sum(right) / count,
        sum(a == b for a, b in zip(judged, right, strict=True)) / count,
        sum(nothing) / count,
    )


# -- over tasks -----------------------------------------------------------------------------------


def counted(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The tasks whose scores are shares of right answers: over these a mean is taken."""
    return [each for each in outcomes if each.scored_by and not each.rated]


def mean_of(outcomes: Sequence[Outcome], system: str) -> Estimate | None:
    """Over the tasks, each of which counts the same."""
    groups = [each.values[system] for each in counted(outcomes)]
    return stratified(groups) if groups else None


def mean_difference(outcomes: Sequence[Outcome], system: str, reference: str) -> Estimate | None:
    groups = [
        [a - b for a, b in zip(each.values[system], each.values[reference], strict=True)]
        for each in counted(outcomes)
    ]
    return stratified(groups) if groups else None


def recall(outcomes: Sequence[Outcome]) -> dict[str, list[Caught]]:
    """By task, and over all of them: what each γ catches."""
    by_task = {each.task: each.positions for each in outcomes if each.positions}
    every = [position for positions in by_task.values() for position in positions]
    named = {**by_task, "all tasks": every} if len(by_task) > 1 else by_task
    return {name: caught(positions, GAMMAS) for name, positions in named.items()}
