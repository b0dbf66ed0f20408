"""Figures as pictures.

Knows: matplotlib, which is an optional extra (`plots`), imported where it is used; colours that
can be told apart without red and green (Okabe and Ito 2008). Does not know: how anything was
measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.evaluation.calibration import Calibration
from server.evaluation.figures import Figures
from server.evaluation.statistics import WARN_SHARE

INSTALL = "matplotlib is not installed; pip install 'nudging-server[plots]'"

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY)
_MARKERS = "osD^v"


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def canvas(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams.update(
        {
            "svg.hashsalt": "nudge",  # the same figures give the same file
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained"
    )
    return figure, axes


def save(figure: Any, path: Path) -> None:
    """The same figures give the same file."""
    from matplotlib import pyplot

    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, dpi=120)
    pyplot.close(figure)


def gammas(found: Calibration, scorer: str | None, path: Path) -> None:
    """Nudged share, and the score or the rounds, over γ."""
    figure, axes = canvas(1, 2, 9, 3.6)
    share, other = axes[0]
    xs = list(found.figures)
    each = list(found.figures.values())
    share.plot(xs, [100 * f.nudged_share for f in each], "o-", color=BLUE, label="measured")
    if unending := found.decision.unending:
        left_out = [100 * found.figures[gamma].nudged_share for gamma in unending]
        label = "left out: answers seldom end"
        share.plot(unending, left_out, "o", color=BLUE, markerfacecolor="white", label=label)
    share.axhline(100 * found.target, color=GREY, linestyle=":", label="target")
    share.axhline(
        100 * WARN_SHARE, color=ORANGE, linestyle="--", label="pairs tend to do badly above"
    )
    if suggestion := found.decision.suggestion:
        share.plot(
            [suggestion.gamma],
            [100 * suggestion.share],
            "D",
            color=PINK,
            markersize=9,
            label=f"suggested: γ = {suggestion.gamma:.3g}",
        )
    share.set_ylabel("nudged tokens, %")
    share.set_ylim(0, max(100 * WARN_SHARE * 1.15, *(105 * f.nudged_share for f in each)))
    share.legend(frameon=False, fontsize=8)
    if scorer:
        means = [100 * f.scores[scorer].mean for f in each]
        low = [100 * (f.scores[scorer].mean - f.scores[scorer].low) for f in each]
        high = [100 * (f.scores[scorer].high - f.scores[scorer].mean) for f in each]
        other.errorbar(xs, means, yerr=[low, high], fmt="o-", color=GREEN, capsize=3)
        other.set_ylabel(f"score ({scorer}), %, with 95 % intervals")
        other.set_ylim(0, 104)
    else:
        other.plot(xs, [f.rounds for f in each], "o-", color=GREEN)
        other.set_ylabel("rounds an answer")
        other.set_ylim(0)
    for axis in axes[0]:
        if suggestion:
            axis.axvline(suggestion.gamma, color=PINK, linewidth=0.8)
        axis.set_xlabel("γ")
        axis.grid(axis="y", alpha=0.25)
    save(figure, path)


def disagreement(found: Calibration, path: Path) -> None:
    """The share of disagreements by p1, and how many positions each share is of."""
    figure, axes = canvas(2, 1, 6.4, 4.8)
    shares, counts = axes[0][0], axes[1][0]
    centres = [(b.low + b.high) / 2 for b in found.bins]
    width = 0.9 / len(found.bins)
    values = [100 * (b.share or 0) for b in found.bins]
    shares.bar(centres, values, width, color=BLUE)
    for centre, value, each in zip(centres, values, found.bins, strict=True):
        label = "no positions" if each.share is None else f"{value:.0f}"
        shares.annotate(
            label,
            (centre, value),
            ha="center",
            va="bottom",
            fontsize=8,
            color=GREY,
            rotation=90 if each.share is None else 0,
        )
    shares.set_ylabel("disagree, %")
    shares.set_ylim(0, 110)
    counts.bar(centres, [b.positions for b in found.bins], width, color=GREY)
    counts.set_ylabel("positions (log scale)")
    counts.set_yscale("log")
    counts.set_ylim(0.7)
    for axis in (shares, counts):
        if suggestion := found.decision.suggestion:
            label = f"suggested: γ = {suggestion.gamma:.3g}"
            axis.axvline(suggestion.gamma, color=PINK, label=label)
        axis.set_xlim(0, 1)
        axis.set_xticks([n / 10 for n in range(11)])
    counts.set_xlabel("p1, the base model's top-1 probability")
    if found.decision.suggestion:
        shares.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
    save(figure, path)


def systems(compared: Sequence[Figures], scorers: Sequence[str], path: Path) -> None:
    """Scores with their intervals, and what a token costs."""
    rows = list(reversed(compared))
    figure, axes = canvas(1, 2, 9, 1.3 + 0.42 * len(rows))
    scores, cost = axes[0]
    places = range(len(rows))
    for number, name in enumerate(scorers):
        shift = 0.14 * ((len(scorers) - 1) / 2 - number)
        means = [100 * f.scores[name].mean for f in rows]
        low = [100 * (f.scores[name].mean - f.scores[name].low) for f in rows]
        high = [100 * (f.scores[name].high - f.scores[name].mean) for f in rows]
        scores.errorbar(
            means,
            [place + shift for place in places],
            xerr=[low, high],
            fmt=_MARKERS[number % len(_MARKERS)],
            color=(BLUE, ORANGE, GREEN, PINK)[number % 4],
            capsize=3,
            label=name,
        )
    scores.set_yticks(places, [f.system for f in rows])
    scores.set_xlim(-2, 102)
    scores.set_xlabel("score, %, with 95 % intervals")
    scores.grid(axis="x", alpha=0.25)
    left = [0.0] * len(rows)
    for label, colour in (("base", BLUE), ("aligned", ORANGE), ("untuned", GREY)):
        steps = [getattr(f, f"{label}_steps") for f in rows]
        if any(steps):
            cost.barh(places, steps, 0.6, left, color=colour, label=label)
            left = [before + more for before, more in zip(left, steps, strict=True)]
    cost.set_yticks(places, [""] * len(rows))
    cost.set_xlabel("positions decoded for a token of an answer")
    for axis in (scores, cost):
        axis.set_ylim(-0.5, len(rows) - 0.5)  # a system's dot and its bar at one height
        axis.legend(frameon=False, fontsize=8, loc="lower center", ncols=4, bbox_to_anchor=(0.5, 1))
    save(figure, path)
