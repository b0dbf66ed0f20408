"""The paper's evaluation as Markdown.

Knows: tables, wording. Does not know: how anything was measured, plots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from server.evaluation import report
from server.evaluation.figures import Figures
from server.evaluation.paper.judge import Cost
from server.evaluation.paper.outcome import (
    REFERENCES,
    Outcome,
    counted,
    mean_difference,
    mean_of,
    recall,
)
from server.evaluation.report import About, percent
from server.evaluation.statistics import Caught, Estimate

SHOWN_GAMMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def text(
    about: About,
    prompts: str,
    outcomes: Sequence[Outcome],
    costs: Mapping[str, Cost],
    plots: Sequence[str],
) -> str:
    """
    Args:
        prompts: ``paper`` or ``own``.
        costs: by the judge's model.
        plots: files that were drawn.
    """
    systems = list(outcomes[0].figures)
    sections = [
        _head(about, prompts),
        _scores(outcomes, systems),
        *_differences(outcomes, systems),
        _rated(outcomes, systems),
        _shares(outcomes, systems, plots),
        _endings(outcomes, systems),
        _judged(outcomes, costs),
        _recall(outcomes, plots),
        _costs(outcomes, systems),
    ]
    return "\n\n".join("\n".join(each) for each in sections if each) + "\n"


def _head(about: About, prompts: str) -> list[str]:
    said = {
        "paper": "Both models read the paper's instruction and question, and nothing more.",
        "own": "Both models read the paper's instruction, in the pair's own prompts.",
    }[prompts]
    return [f"# The paper's tasks: {about.model}", "", *report.described(about), "", said]


def _scores(outcomes: Sequence[Outcome], systems: Sequence[str]) -> list[str]:
    told = [each for each in outcomes if each.scored_by and not each.rated]
    if not told:
        return []
    head = ["system", *(f"{each.task} ({each.scored_by})" for each in told)]
    head.append(f"mean of {len(told)}")
    rows = [
        [
            system,
            *(report.estimate(each.figures[system].scores[each.scored_by or ""]) for each in told),
            _estimate(mean_of(outcomes, system)),
        ]
        for system in systems
    ]
    return [
        "## Scores",
        "",
        *report.table(head, rows),
        "",
        f"Questions: {', '.join(f'{each.task} {each.questions}' for each in told)}. "
        "In per cent, with 95 % intervals (percentile bootstrap over questions, seeded; of the "
        "mean, over each task's questions by themselves). Rule: the last number, as the authors "
        "do. Judge: a model that sees question, answer and right answer. Extracted: what the "
        "answer comes to, by our own rules, where no judge was asked.",
    ]


def _differences(outcomes: Sequence[Outcome], systems: Sequence[str]) -> list[list[str]]:
    told = counted(outcomes)
    sections = []
    for reference in [each for each in REFERENCES if each in systems and told]:
        others = [system for system in systems if system != reference]
        rows = [
            [
                system,
                *(
                    report.estimate(each.difference(system, reference), signed=True)
                    for each in told
                ),
                _estimate(mean_difference(outcomes, system, reference), signed=True),
            ]
            for system in others
        ]
        head = ["system", *(each.task for each in told), "mean"]
        if rows:
            sections.append(
                [
                    f"## Over {reference}",
                    "",
                    *report.table(head, rows),
                    "",
                    "The paired difference on the same questions, in points.",
                ]
            )
    return sections


def _rated(outcomes: Sequence[Outcome], systems: Sequence[str]) -> list[str]:
    rated = [each for each in outcomes if each.rated]
    lines: list[str] = []
    for each in [each for each in rated if each.scored_by]:
        aspects = list(next(iter(each.figures.values())).scores)
        aspects = aspects if len(aspects) > 2 else aspects[1:]
        rows = [
            [system, *(_rating(each.figures[system].scores[aspect]) for aspect in aspects)]
            for system in systems
        ]
        lines += [f"{each.task}, {each.questions} questions:", ""]
        lines += [*report.table(["system", *aspects], rows), ""]
    lacking = [each.task for each in rated if not each.scored_by]
    if lacking:
        lines += [f"Not scored, for it takes a judge (`--judge`): {', '.join(lacking)}.", ""]
    return ["## Open answers, rated from 1 to 5", "", *lines[:-1]] if lines else []


def _shares(outcomes: Sequence[Outcome], systems: Sequence[str], plots: Sequence[str]) -> list[str]:
    nudged = [each for each in systems if outcomes[0].figures[each].nudged_words is not None]
    if not nudged:
        return []
    head = ["system", *(each.task for each in outcomes)]
    rows = [[system, *(_share(each.figures[system]) for each in outcomes)] for system in nudged]
    return [
        "## Nudged share",
        "",
        *report.table(head, rows),
        "",
        "Of the tokens / of the words, as the authors count them (in the mean of the answers; "
        "an answer's last nudge is taken for its end and doesn't count).",
        *_drawn("shares.svg", "Nudged share by task", plots),
    ]


def _endings(outcomes: Sequence[Outcome], systems: Sequence[str]) -> list[str]:
    rows = [
        [each.task, system, *report.endings(each.figures[system])]
        for each in outcomes
        for system in systems
    ]
    table = report.table(["task", "system", *report.ENDINGS], rows)
    return ["## How the answers ended", "", *table, "", report.ENDINGS_MEAN]


def _judged(outcomes: Sequence[Outcome], costs: Mapping[str, Cost]) -> list[str]:
    if not costs:
        return []
    lines = ["## The judge", ""]
    rows = [
        [
            model,
            *(str(count) for count in (cost.judgements, cost.new, cost.failed)),
            *(f"{count:,}" for count in (cost.prompt_tokens, cost.completion_tokens)),
        ]
        for model, cost in costs.items()
    ]
    head = ["model", "judgements", "of this run", "failed", "prompt tokens", "completion tokens"]
    lines += report.table(head, rows)
    lines += ["", "Failed: no JSON that could be read, counted as wrong (or as 1 of 5)."]
    compared = [(each.task, each.agreed) for each in outcomes if each.agreed is not None]
    if compared:
        rows = [
            [
                task,
                str(each.answers),
                percent(each.judged_right),
                percent(each.extracted_right),
                percent(each.agree),
                percent(each.nothing_extracted),
            ]
            for task, each in compared
        ]
        head = ["task", "answers", "right: judge", "right: extracted", "agree"]
        lines += ["", "Beside it, what is extracted without a judge, over all systems:", ""]
        lines += report.table([*head, "nothing extracted"], rows)
    return lines


def _recall(outcomes: Sequence[Outcome], plots: Sequence[str]) -> list[str]:
    found = recall(outcomes)
    if not found:
        return []
    rows = [[name, *(_caught(points, g) for g in SHOWN_GAMMAS)] for name, points in found.items()]
    return [
        "## Which disagreements a γ catches",
        "",
        *report.table(["task", *(f"γ = {gamma:g}" for gamma in SHOWN_GAMMAS)], rows),
        "",
        "Along the aligned model's own answers: of the positions at which the base model's "
        "likeliest token is another, the share with p1 under γ / of all positions, the share under "
        "γ.",
        *_drawn("recall.svg", "Disagreements that a γ catches", plots),
    ]


def _costs(outcomes: Sequence[Outcome], systems: Sequence[str]) -> list[str]:
    measures: dict[str, Callable[[Figures], float]] = {
        "tokens": lambda each: each.tokens,
        "steps/token: base": lambda each: each.base_steps,
        "aligned": lambda each: each.aligned_steps,
        "untuned": lambda each: each.untuned_steps,
        "s/answer": lambda each: each.seconds,
        "tok/s": lambda each: each.tokens_per_s,
    }
    rows = [
        [system]
        + [
            f"{sum(measure(each.figures[system]) for each in outcomes) / len(outcomes):.2f}"
            for measure in measures.values()
        ]
        for system in systems
    ]
    return [
        "## What it cost",
        "",
        *report.table(["system", *measures], rows),
        "",
        "In the mean of the tasks. Seconds and tok/s are those of one answer, with others beside "
        "it.",
    ]


def _drawn(name: str, title: str, plots: Sequence[str]) -> list[str]:
    return ["", f"![{title}]({name})"] if name in plots else []


def _share(each: Figures) -> str:
    return f"{percent(each.nudged_share)} / {percent(each.nudged_words)}"


def _caught(points: Sequence[Caught], gamma: float) -> str:
    found = min(points, key=lambda each: abs(each.gamma - gamma))
    return f"{percent(found.disagreements)} / {percent(found.positions)}"


def _rating(value: Estimate) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _estimate(value: Estimate | None, *, signed: bool = False) -> str:
    return "–" if value is None else report.estimate(value, signed=signed)
