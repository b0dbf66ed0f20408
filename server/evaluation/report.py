"""Figures as Markdown and JSON.

Knows: tables, wording. Does not know: how anything was measured, plots.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from server.evaluation.figures import Figures
from server.evaluation.statistics import WARN_SHARE, Bin, Estimate, Suggestion


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


@dataclass(frozen=True)
class Calibration:
    """What `nudge calibrate` found.

    figures: by γ, in order. unending: γ that were left out of the suggestion, because answers
    seldom end by themselves there. bins, agreement: where the models disagree; see `agreement`.
    below: the share of positions under the suggested γ, and of the disagreements among them.
    """

    about: About
    target: float
    figures: Mapping[float, Figures]
    suggestion: Suggestion
    unending: Sequence[float]
    bins: Sequence[Bin]
    agreement: float
    below: tuple[float, float]


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
    head += ["stopped", "nudged", "tokens", "steps/token: base", "aligned"]
    untuned = any(each.untuned_steps for each in systems)
    head += (["untuned"] if untuned else []) + ["s/answer", "tok/s"]
    rows = []
    for each in systems:
        row = [each.system, *(_estimate(each.scores[name]) for name in scorers)]
        if compared:
            row += [
                _estimate(each.differences[name], signed=True) if each.differences else "–"
                for name in scorers
            ]
        row += [_percent(each.stopped), _nudged(each), f"{each.tokens:.0f}"]
        row += [f"{each.base_steps:.2f}", f"{each.aligned_steps:.2f}"]
        row += [f"{each.untuned_steps:.2f}"] if untuned else []
        rows.append([*row, f"{each.seconds:.2f}", f"{each.tokens_per_s:.0f}"])
    lines = [
        f"# {about.model} on {about.data}",
        "",
        *_described(about),
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
    reasons = [[each.system, _reasons(each)] for each in systems]
    lines += ["", "## How the answers ended", "", *table(["system", "stop reasons"], reasons)]
    return "\n".join(lines) + "\n"


def _legend(compared: bool) -> list[str]:
    lines = [
        "Scores in per cent, with 95 % intervals (percentile bootstrap over questions, seeded). "
    ]
    if compared:
        lines += ["Over base: the paired difference to the base model alone, in points. "]
    lines += [
        "Stopped: answers that ended by themselves. Nudged: share of tokens by the aligned model. "
        "Steps: positions decoded by each model. Seconds and tok/s are those of one answer, with "
        "others beside it."
    ]
    return ["".join(lines)]


# -- calibration ----------------------------------------------------------------------------------


def calibration(found: Calibration, scorer: str | None, snippet: str, plots: Sequence[str]) -> str:
    """The report of `nudge calibrate`."""
    head = ["γ", "nudged", *([scorer] if scorer else []), "tokens", "rounds", "stopped"]
    head += ["stop reasons"]
    rows = []
    for gamma, each in found.figures.items():
        row = [f"{gamma:g}", f"{100 * each.nudged_share:.1f} %"]
        row += [_estimate(each.scores[scorer])] if scorer else []
        row += [f"{each.tokens:.0f}", f"{each.rounds:.1f}", _percent(each.stopped), _reasons(each)]
        rows.append(row)
    about = found.about
    below, caught = found.below
    lines = [
        f"# Calibration of {about.model}",
        "",
        *_described(about),
        "",
        "## Which γ",
        "",
        *table(head, rows),
        "",
        *"\n\n".join(advice(found, scorer)).split("\n"),
        "",
        "For the configuration (`suggested.yaml`):",
        "",
        "```yaml",
        snippet.rstrip("\n"),
        "```",
        "",
        *(f"![{name}]({name})\n" for name in plots[:1]),
        "## Where the models disagree",
        "",
        "Along the aligned model's own greedy answers: at each of their tokens, what the base "
        "model would write next, and how sure it is (p1). It disagrees where the answer goes on "
        "otherwise.",
        "",
        *table(
            ["p1", "positions", "disagree"],
            [
                [f"{b.low:.1f} – {b.high:.1f}", str(b.positions), _percent(b.share)]
                for b in found.bins
            ],
        ),
        "",
        f"Over all {sum(b.positions for b in found.bins)} positions the models disagree at "
        f"{_percent(1 - found.agreement)}. Under γ = {found.suggestion.gamma:.3g} are "
        f"{_percent(below)} of the positions, and {_percent(caught)} of the disagreements. A pair "
        "suits nudging where the first is small and the second large: then p1 shows where "
        "alignment would write something else.",
        "",
        *(f"![{name}]({name})" for name in plots[1:]),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def advice(found: Calibration, scorer: str | None) -> list[str]:
    """What to do with it, in paragraphs."""
    gamma, share = found.suggestion.gamma, found.suggestion.share
    target = f"{100 * found.target:g} %"
    if found.suggestion.measured:
        text = f"**γ = {gamma:.3g}** for about {target} of tokens nudged."
    elif share > found.target:
        why = "at which answers end by themselves" if found.unending else "that was tried"
        text = (
            f"**γ = {gamma:.3g}** is the smallest {why}, and nudges {100 * share:.1f} % already, "
            f"more than the {target} that were asked for."
        )
        text += "" if found.unending else " Try smaller --gammas."
    else:
        text = (
            f"**γ = {gamma:.3g}** is the largest that was tried, and nudges {100 * share:.1f} %, "
            f"less than the {target} that were asked for. Try larger --gammas."
        )
    if share > WARN_SHARE:
        text += (
            f" **Over {100 * WARN_SHARE:.0f} % nudged, a pair tends to do badly**: the aligned "
            "model writes so much that its own weakness shows. In the pairs of the paper that "
            "work, about 10 % are nudged."
        )
    paragraphs = [text]
    if found.unending:
        named = ", ".join(f"{each:g}" for each in found.unending)
        paragraphs.append(
            f"Left out: γ = {named}. The base model is seldom unsure enough there for the aligned "
            "model to end the answer, so that answers run on to their limit; their nudged share "
            "says little."
        )
    if scorer:
        best = max(found.figures.items(), key=lambda each: each[1].scores[scorer].mean)
        score = _estimate(best[1].scores[scorer])
        paragraphs.append(f"The best score ({scorer}): {score} at γ = {best[0]:g}.")
    return paragraphs


def snippet(model: str, settings: Mapping[str, Any], gamma: float) -> str:
    """YAML for a configuration: the served model with the suggested γ."""
    kept = {**settings, "nudging": {**settings.get("nudging", {}), "gamma": float(f"{gamma:.3g}")}}
    return yaml.safe_dump({"models": {model: kept}}, sort_keys=False, allow_unicode=True)


# -- tables ---------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; numbers to the right."""
    columns = zip(*rows, strict=True) if rows else [[""]] * len(head)
    marks = ["---:" if all(map(_numeric, column)) else "---" for column in columns]
    lines = [head, marks, *rows]
    return ["| " + " | ".join(each.replace("|", "\\|") for each in line) + " |" for line in lines]


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell[:1] in ("–", "+", "-")


def _described(about: About) -> list[str]:
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
    """One line of the terminal's table: scores, stopped, nudged, tokens, tokens a second."""
    scores = [_estimate(each) for each in system.scores.values()]
    speed = f"{system.tokens_per_s:.0f}"
    return [*scores, _percent(system.stopped), _nudged(system), f"{system.tokens:.0f}", speed]


def _estimate(value: Estimate, *, signed: bool = False) -> str:
    mean, low, high = (100 * each for each in (value.mean, value.low, value.high))
    if signed:
        return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _nudged(each: Figures) -> str:
    alone = each.system in ("base", "aligned")
    return "–" if alone else f"{100 * each.nudged_share:.1f} %"


def _reasons(each: Figures) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in each.stop_reasons.items())
