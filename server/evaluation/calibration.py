"""What `nudge calibrate` found, what follows from it, and how that is told.

Knows: figures by γ, which of them can be trusted, wording. Does not know: how anything was
measured, plots, the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from server.evaluation import report, statistics
from server.evaluation.figures import Figures
from server.evaluation.report import About, percent
from server.evaluation.runs import Answer
from server.evaluation.statistics import WARN_SHARE, Bin, Suggestion

FLOOR = 0.5
"""Of the answers at the best γ that end by themselves: under that, no γ suits the pair."""

SHORT = 0.2
"""Of the aligned model's own answers that are cut by length: over that, a γ whose answers are cut
as well is not to blame."""

BLIND = 0.5
"""The same: over that, nothing can be said about endings at all."""

EXAMPLE = 600
"""Characters of an example answer at most."""


@dataclass(frozen=True)
class Decision:
    """Which γ.

    suggestion: None where no γ suits the pair. unending: γ that were left out, because answers
    seldom end by themselves there. cut: the share of the aligned model's own answers that are cut
    by length.
    """

    suggestion: Suggestion | None
    unending: Sequence[float]
    cut: float

    @property
    def short(self) -> bool:
        """Whether the limit is too small to see which γ end."""
        return self.cut > SHORT

    @property
    def blind(self) -> bool:
        return self.cut > BLIND


@dataclass(frozen=True)
class Calibration:
    """What `nudge calibrate` found.

    figures: by γ, in order. alone: by model. decision: what follows. examples: an answer to the
    first question, by system. bins, agreement: where the models disagree; see `agreement`. below:
    the share of positions under the suggested γ, and of the disagreements among them.
    """

    about: About
    target: float
    figures: Mapping[float, Figures]
    alone: Mapping[str, Figures]
    decision: Decision
    examples: Mapping[str, str]
    bins: Sequence[Bin]
    agreement: float
    below: tuple[float, float] | None


def decide(found: Mapping[float, Figures], aligned: Figures, target: float) -> Decision:
    """
    Args:
        aligned: the aligned model alone. It can end its answers: where it doesn't, the limit is
            too small.
    """
    cut = aligned.cut_by_length
    ended = [(gamma, each.ended) for gamma, each in found.items()]
    if cut <= BLIND and max(share for _, share in ended) < FLOOR:
        return Decision(None, [], cut)
    unending = [] if cut > SHORT else statistics.unending(ended)
    shares = [(g, f.nudged_share) for g, f in found.items() if g not in unending]
    return Decision(statistics.suggest(shares, target), unending, cut)


def example(answer: Answer) -> str:
    """An answer with its nudges in brackets, cut where it is long."""
    parts, at = [], 0
    for start, end in answer.nudges or ():
        parts += [answer.text[at:start], f"[{answer.text[start:end]}]" if end > start else ""]
        at = end
    text = "".join([*parts, answer.text[at:]])
    return text if len(text) <= EXAMPLE else text[:EXAMPLE] + " …"


def text(found: Calibration, scorer: str | None, snippet: str, plots: Sequence[str]) -> str:
    """The report as Markdown."""
    head = ["γ", "nudged", *([scorer] if scorer else []), *report.ENDINGS, "tokens", "rounds"]
    head += ["stop reasons"]
    named = {f"{gamma:g}": each for gamma, each in found.figures.items()}
    named |= {f"{name} alone": each for name, each in found.alone.items()}
    rows = []
    for name, each in named.items():
        row = [name, f"{100 * each.nudged_share:.1f} %" if each.system not in found.alone else "–"]
        row += [report.estimate(each.scores[scorer])] if scorer else []
        row += [*report.endings(each), f"{each.tokens:.0f}", f"{each.rounds:.1f}"]
        rows.append([*row, report.reasons(each)])
    lines = [
        f"# Calibration of {found.about.model}",
        "",
        *report.described(found.about),
        "",
        "## Which γ",
        "",
        *report.table(head, rows),
        "",
        report.ENDINGS_MEAN,
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
        "## An answer at each γ",
        "",
        "To the first question; what the aligned model wrote is in brackets.",
        "",
        *(line for name, said in found.examples.items() for line in _fenced(name, said)),
        "## Where the models disagree",
        "",
        *_disagreement(found),
        "",
        *(f"![{name}]({name})" for name in plots[1:]),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _fenced(name: str, said: str) -> list[str]:
    fence = "`" * (1 + max(2, *(len(run) for run in re.findall("`+", said)), 2))
    return [f"**{name}**", "", f"{fence}text", *said.split("\n"), fence, ""]


def _disagreement(found: Calibration) -> list[str]:
    rows = [[f"{b.low:.1f} – {b.high:.1f}", str(b.positions), percent(b.share)] for b in found.bins]
    every = (
        f"Over all {sum(b.positions for b in found.bins)} positions the models disagree at "
        f"{percent(1 - found.agreement)}."
    )
    if found.below is not None and found.decision.suggestion is not None:
        below, caught = found.below
        every += (
            f" Under γ = {found.decision.suggestion.gamma:.3g} are {percent(below)} of the "
            f"positions, and {percent(caught)} of the disagreements. A pair suits nudging where "
            "the first is small and the second large: then p1 shows where alignment would write "
            "something else."
        )
    return [
        "Along the aligned model's own greedy answers: at each of their tokens, what the base "
        "model would write next, and how sure it is (p1). It disagrees where the answer goes on "
        "otherwise.",
        "",
        *report.table(["p1", "positions", "disagree"], rows),
        "",
        every,
    ]


# -- what to do with it ---------------------------------------------------------------------------


def advice(found: Calibration, scorer: str | None) -> list[str]:
    """What to do with it, in paragraphs."""
    paragraphs = [*_warnings(found)]
    paragraphs.append(_unsuited(found) if found.decision.suggestion is None else _suited(found))
    if found.decision.unending:
        named = ", ".join(f"{each:g}" for each in found.decision.unending)
        paragraphs.append(
            f"Left out: γ = {named}. The base model is seldom unsure enough there for the aligned "
            "model to end the answer, so that answers run on until something cuts them; their "
            "nudged share says little."
        )
    if scorer:
        best = max(found.figures.items(), key=lambda each: each[1].scores[scorer].mean)
        score = report.estimate(best[1].scores[scorer])
        paragraphs.append(f"The best score ({scorer}): {score} at γ = {best[0]:g}.")
    return paragraphs


def _warnings(found: Calibration) -> list[str]:
    if not found.decision.short:
        return []
    text = (
        f"**--max-tokens {found.about.max_tokens} is too small to see endings**: "
        f"{percent(found.decision.cut)} of the aligned model's own answers were cut by length. "
        "Give more; if that changes nothing, the aligned model doesn't end its answers: look at "
        "its chat template. No γ was left out for answers that didn't end"
    )
    return [text + (", and whether one suits can't be told." if found.decision.blind else ".")]


def _unsuited(found: Calibration) -> str:
    gamma, best = max(found.figures.items(), key=lambda each: each[1].ended)
    text = (
        f"**No γ suits this pair**: even at γ = {gamma:g} only {percent(best.ended)} of the "
        f"answers end by themselves, and {percent(FLOOR)} is the least that a chat needs "
        f"(the aligned model alone: {percent(found.alone['aligned'].ended)})."
    )
    if best.next_turn:
        text += (
            f" {percent(best.next_turn)} write the next turn of the base model's prompt: another "
            "models.NAME.base_prompt may help, or its header as a stop string."
        )
    if best.cut_at_stop:
        text += f" {percent(best.cut_at_stop)} were cut at a stop string, which is no end."
    return text


def _suited(found: Calibration) -> str:
    suggestion = found.decision.suggestion
    assert suggestion is not None
    gamma, share = suggestion.gamma, suggestion.share
    target = f"{100 * found.target:g} %"
    if suggestion.measured:
        text = f"**γ = {gamma:.3g}** for about {target} of tokens nudged."
    elif share > found.target:
        unending = found.decision.unending
        why = "at which answers end by themselves" if unending else "that was tried"
        text = (
            f"**γ = {gamma:.3g}** is the smallest {why}, and nudges {100 * share:.1f} % already, "
            f"more than the {target} that were asked for."
        )
        text += "" if unending else " Try smaller --gammas."
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
    return text


def snippet(found: Calibration, settings: Mapping[str, Any]) -> str:
    """YAML for a configuration: the served model with the suggested γ; what is to be known before
    it is pasted, as comments."""
    name, suggestion = found.about.model, found.decision.suggestion
    notes = [*_warnings(found), *([_unsuited(found)] if suggestion is None else [])]
    comments = "".join(f"# {each.replace('**', '')}\n" for each in notes)
    if suggestion is None:
        return comments
    gamma = float(f"{suggestion.gamma:.3g}")
    kept = {**settings, "nudging": {**settings.get("nudging", {}), "gamma": gamma}}
    text = yaml.safe_dump({"models": {name: kept}}, sort_keys=False, allow_unicode=True)
    return comments + text
