"""What the answers of one system come to.

Knows: answers, scores, statistics. Does not know: how figures are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.core import Usage
from server.evaluation.data import Data
from server.evaluation.endings import AT_STOP, TOO_LONG
from server.evaluation.runs import Answer
from server.evaluation.scorers import Scorer, score
from server.evaluation.statistics import Estimate, bootstrap, paired
from server.evaluation.words import nudged_words

Scores = Mapping[str, Sequence[float]]
"""By scorer: a number from 0 to 1 for each answer, in the data's order."""


@dataclass(frozen=True)
class Figures:
    """One system's answers to some questions.

    scores: by scorer, the mean with its 95 % interval. differences: the paired differences to a
        baseline. by_kind: by kind of question and scorer, the mean.
    ended: the share of answers that a model ended. next_turn: that write the next turn of their own
        prompt. looped: that a loop guard cut, or that say a sentence three times. cut_by_length,
        cut_at_stop: that a limit or a stop string cut.
    nudged_share: of all tokens. nudged_words: of an answer's words, in the mean, as the authors
        count; None for one model alone.
    base_steps, aligned_steps, untuned_steps: decode positions per token of an answer.
    rounds, tokens, seconds: of an answer, in the mean. tokens_per_s: of one answer, while as many
        others were written as the run allowed.
    """

    system: str
    answers: int
    scores: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    by_kind: Mapping[str, Mapping[str, float]]
    stop_reasons: Mapping[str, int]
    ended: float
    next_turn: float
    looped: float
    cut_by_length: float
    cut_at_stop: float
    nudged_share: float
    nudged_words: float | None
    rounds: float
    tokens: float
    base_steps: float
    aligned_steps: float
    untuned_steps: float
    seconds: float
    tokens_per_s: float


def scored(
    answers: Sequence[Answer], data: Data, scorers: Mapping[str, Scorer]
) -> dict[str, list[float]]:
    """Raises `EvaluationError` where a scorer fails."""
    return {
        name: [
            score(name, scorer, answer.text, item)
            for answer, item in zip(answers, data.items, strict=True)
        ]
        for name, scorer in scorers.items()
    }


def figures(
    system: str,
    answers: Sequence[Answer],
    data: Data,
    scores: Scores,
    baseline: Scores | None = None,
) -> Figures:
    """``baseline``: the scores of the system that the differences are to."""
    total = Usage.total([[answer.usage] for answer in answers])
    tokens, count = total.completion_tokens or 1, len(answers)
    seconds = sum(answer.seconds for answer in answers)
    kinds = list(dict.fromkeys(item.kind for item in data.items if item.kind is not None))
    return Figures(
        system=system,
        answers=count,
        scores={name: bootstrap(values) for name, values in scores.items()},
        differences={
            name: paired(values, baseline[name])
            for name, values in scores.items()
            if baseline is not None
        },
        by_kind={kind: _of_kind(kind, data, scores) for kind in kinds},
        stop_reasons=dict(Counter(answer.stop_reason for answer in answers).most_common()),
        ended=sum(answer.ended for answer in answers) / count,
        next_turn=sum(answer.next_turn for answer in answers) / count,
        looped=sum(answer.looped for answer in answers) / count,
        cut_by_length=sum(answer.stop_reason in TOO_LONG for answer in answers) / count,
        cut_at_stop=sum(answer.stop_reason in AT_STOP for answer in answers) / count,
        nudged_share=total.nudged_share,
        nudged_words=_in_words(answers),
        rounds=total.rounds / count,
        tokens=total.completion_tokens / count,
        base_steps=total.base_steps / tokens,
        aligned_steps=total.aligned_steps / tokens,
        untuned_steps=total.untuned_steps / tokens,
        seconds=seconds / count,
        tokens_per_s=total.completion_tokens / (seconds or 1),
    )


def _in_words(answers: Sequence[Answer]) -> float | None:
    shares = [nudged_words(each.text, each.nudges) for each in answers if each.nudges is not None]
    return sum(shares) / len(shares) if shares else None


def _of_kind(kind: str, data: Data, scores: Scores) -> dict[str, float]:
    places = [place for place, item in enumerate(data.items) if item.kind == kind]
    return {
        name: sum(values[place] for place in places) / len(places)
        for name, values in scores.items()
    }
