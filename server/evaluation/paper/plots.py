"""The paper's evaluation as pictures.

Knows: matplotlib, through `server.evaluation.plots`. Does not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from server.evaluation.paper.outcome import Outcome, recall
from server.evaluation.plots import COLOURS, GREY, canvas, save

_LINES = ("-", "--", ":", "-.")


def draw(outcomes: Sequence[Outcome], folder: Path) -> list[str]:
    """The names of the files that there is something to draw for."""
    names = []
    if recall(outcomes):
        _recall(outcomes, folder / "recall.svg")
        names.append("recall.svg")
    if nudged := _nudged(outcomes):
        _shares(outcomes, nudged, folder / "shares.svg")
        names.append("shares.svg")
    return names


def _nudged(outcomes: Sequence[Outcome]) -> list[str]:
    first = outcomes[0].figures
    return [name for name, each in first.items() if each.nudged_words is not None]


def _recall(outcomes: Sequence[Outcome], path: Path) -> None:
    """Disagreements that a γ catches over γ, and over the positions that it takes."""
    figure, axes = canvas(1, 2, 10, 4)
    by_gamma, by_share = axes[0]
    for number, (name, points) in enumerate(recall(outcomes).items()):
        bold = name == "all tasks"
        style = {
            "color": GREY if bold else COLOURS[number % 4],
            "linestyle": "-" if bold else _LINES[number // 4 % 4],
            "linewidth": 2.5 if bold else 1.2,
            "label": name,
        }
        caught = [100 * each.disagreements for each in points]
        by_gamma.plot([each.gamma for each in points], caught, **style)
        by_share.plot([100 * each.positions for each in points], caught, **style)
    by_gamma.set_xlabel("γ")
    by_gamma.set_ylabel("disagreements with p1 < γ, %")
    by_share.set_xlabel("positions with p1 < γ, %")
    for axis in (by_gamma, by_share):
        axis.set_ylim(0, 102)
        axis.grid(alpha=0.25)
    by_share.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


def _shares(outcomes: Sequence[Outcome], nudged: Sequence[str], path: Path) -> None:
    """The nudged share of each task: bars in tokens, dots in words."""
    figure, axes = canvas(1, 1, 9, 1.4 + 0.2 * len(outcomes) * max(1, len(nudged)))
    axis = axes[0][0]
    height = 0.8 / len(nudged)
    for number, name in enumerate(nudged):  # from the top
        places = [place + 0.4 - height * (number + 0.5) for place in range(len(outcomes))]
        found = [each.figures[name] for each in reversed(outcomes)]
        colour = COLOURS[number % len(COLOURS)]
        axis.barh(places, [100 * f.nudged_share for f in found], height, color=colour, label=name)
        words = [100 * (f.nudged_words or 0) for f in found]
        axis.plot(words, places, "o", color="black", markersize=3)
    axis.set_yticks(range(len(outcomes)), [each.task for each in reversed(outcomes)])
    axis.set_xlabel("nudged, % of the tokens (dots: of the words, as the authors count)")
    axis.grid(axis="x", alpha=0.25)
    axis.legend(frameon=False, fontsize=8, loc="lower center", ncols=4, bbox_to_anchor=(0.5, 1))
    save(figure, path)
