"""Figures as Markdown and JSON.

Knows: tables, wording. Does not know: how anything was measured, plots.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.evaluation.figures import Figures
from server.evaluation.statistics import Estimate
from server.evaluation.systems import ALONE


@dataclass(frozen=True)
class About:
    """What a report says of the run itself.

    data: its name. command: with which the run was begun. begun: its date. machine: what it ran on.
    """

    model: str
    base: str
    aligned: str
    data: str
    questions: int
    max_tokens: int
    at_once: int
    stop: Sequence[str]
    command: str
    begun: str
    machine: str


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(_plain(value), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return round(value, 6) if isinstance(value, float) else value


# -- evaluation -----------------------------------------------------------------------------------


def evaluation(
    about: About, systems: Sequence[Figures], scorers: Sequence[str], plot: str | None
) -> str:
    """The report of `nudge eval`."""
    compared = [each for each in systems if each.differences]
    head = ["system", *scorers]
    if compared:
        head += [f"{name}: over base" for name in scorers]
    head += [*ENDINGS, "nudged", "in words", "tokens", "steps/token: base", "aligned"]
    untuned = any(each.untuned_steps for each in systems)
    head += (["untuned"] if untuned else []) + ["s/answer", "tok/s"]
    rows = []
    for each in systems:
        row = [each.system, *(estimate(each.scores[name]) for name in scorers)]
        if compared:
            row += [
                estimate(each.differences[name], signed=True) if each.differences else "–"
                for name in scorers
            ]
        row += [*endings(each), nudged(each), percent(each.nudged_words), f"{each.tokens:.0f}"]
        row += [f"{each.base_steps:.2f}", f"{each.aligned_steps:.2f}"]
        row += [f"{each.untuned_steps:.2f}"] if untuned else []
        rows.append([*row, f"{each.seconds:.2f}", f"{each.tokens_per_s:.0f}"])
    lines = [
        f"# {about.model} on {about.data}",
        "",
        *described(about),
        "",
        *table(head, rows),
        "",
        *_legend(bool(compared)),
    ]
    if plot:
        lines += ["", f"![Scores and cost]({plot})"]
    if kinds := list(systems[0].by_kind):
        head = [" / ".join(scorers), *kinds]
        rows = [
            [
                each.system,
                *(" / ".join(f"{100 * each.by_kind[k][n]:.0f}" for n in scorers) for k in kinds),
            ]
            for each in systems
        ]
        lines += ["", "## By kind of question", "", *table(head, rows)]
    ends = [[each.system, reasons(each)] for each in systems]
    lines += ["", "## How the answers ended", "", *table(["system", "stop reasons"], ends)]
    return "\n".join(lines) + "\n"


def _legend(compared: bool) -> list[str]:
    lines = [
        "Scores in per cent, with 95 % intervals (percentile bootstrap over questions, seeded). "
    ]
    if compared:
        lines += ["Over base: the paired difference to the base model alone, in points. "]
    lines += [
        f"{ENDINGS_MEAN} Nudged: share of tokens by the aligned model; in words: as the authors of "
        "nudging count it, in the mean of the answers. Steps: positions decoded by each model. "
        "Seconds and tok/s are those of one answer, with others beside it."
    ]
    return ["".join(lines)]


# -- tables ---------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; numbers to the right."""
    columns = zip(*rows, strict=True) if rows else [[""]] * len(head)
    marks = ["---:" if all(map(_numeric, column)) else "---" for column in columns]
    lines = [head, marks, *rows]
    return ["| " + " | ".join(each.replace("|", "\\|") for each in line) + " |" for line in lines]


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("–", "+", "-")


def described(about: About) -> list[str]:
    stop = f", stop strings {', '.join(map(repr, about.stop))}" if about.stop else ""
    return [
        f"{about.begun}, {about.machine}. Base `{about.base}`, aligned `{about.aligned}`; "
        f"{about.questions} questions of `{about.data}`, greedy, at most {about.max_tokens} "
        f"tokens{stop}, {about.at_once} answers at once. The command:",
        "",
        "```sh",
        about.command,
        "```",
    ]


def shown(system: Figures) -> list[str]:
    """One line of the terminal's table: scores, ended, nudged, tokens, tokens a second."""
    scores = [estimate(each) for each in system.scores.values()]
    speed = f"{system.tokens_per_s:.0f}"
    return [*scores, percent(system.ended), nudged(system), f"{system.tokens:.0f}", speed]


ENDINGS = ("ended", "next turn", "looped", "cut by length", "at a stop string")
"""Columns that `endings` fills."""

ENDINGS_MEAN = (
    "Ended: answers that a model ended by itself. Next turn: those in which the next turn of the "
    "base model's prompt is written. Looped: cut by a loop guard, or with one sentence three "
    "times. Cut: by a limit, or at a stop string. (An answer may count more than once.)"
)


def endings(each: Figures) -> list[str]:
    shares = (each.ended, each.next_turn, each.looped, each.cut_by_length, each.cut_at_stop)
    return [percent(share) for share in shares]


def estimate(value: Estimate, *, signed: bool = False) -> str:
    mean, low, high = (100 * each for each in (value.mean, value.low, value.high))
    if signed:
        return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def nudged(each: Figures) -> str:
    alone = each.system in ALONE
    return "–" if alone else f"{100 * each.nudged_share:.1f} %"


def reasons(each: Figures) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in each.stop_reasons.items())
