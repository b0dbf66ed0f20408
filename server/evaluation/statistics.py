"""What some numbers tell: intervals, shares by bin, the γ that a share needs.

Knows: arithmetic. Does not know: answers, files, models. Everything random has a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000

ENDING = 0.9
"""Of the share of answers that end by themselves at the best γ: under that, they seldom do."""

WARN_SHARE = 0.2
"""A pair of which more is nudged tends to do badly (Fei, Razeghi, Singh, ACL 2025: about 10 % of
tokens are nudged in the pairs that work)."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of some values, by the percentile bootstrap (Efron 1979). At least one value."""
    return stratified([values], seed)


def stratified(groups: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean of the means of several groups, each of which is resampled by itself."""
    mean = float(np.mean([np.mean(values) for values in groups]))
    means = np.mean([_resampled(each, seed + 1000 * n) for n, each in enumerate(groups)], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    # The mean itself is one of the possible ones: rounding must not put it outside.
    return Estimate(mean, min(float(low), mean), max(float(high), mean))


def _resampled(values: Sequence[float], seed: int) -> NDArray[np.float64]:
    """The means of the resamples."""
    found = np.asarray(values, dtype=float)
    return np.concatenate(
        [found[_picks(len(found), count, seed + n)].mean(1) for n, count in _parts(len(found))]
    )


def paired(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Estimate:
    """The mean difference to a baseline on the same questions."""
    if len(values) != len(baseline):
        raise ValueError("a paired difference needs the same questions on both sides")
    return bootstrap(np.subtract(values, baseline).tolist(), seed)


def _parts(size: int) -> list[tuple[int, int]]:
    """Resamples in parts that fit into memory, numbered."""
    most = max(1, 2_000_000 // size)
    counts = [most] * (RESAMPLES // most) + [RESAMPLES % most]
    return [(n, count) for n, count in enumerate(counts) if count]


def _picks(size: int, count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, size, (count, size))


# -- where two models disagree --------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Positions with ``low`` ≤ p1 < ``high`` (the last bin holds 1 too), and how many of them the
    models disagree at."""

    low: float
    high: float
    positions: int
    disagreements: int

    @property
    def share(self) -> float | None:
        return self.disagreements / self.positions if self.positions else None


def by_top_prob(positions: Sequence[tuple[float, bool]], bins: int = 10) -> list[Bin]:
    """(p1, whether the models agree) by bins of p1."""
    counts = np.zeros((bins, 2), dtype=int)
    for top_prob, agrees in positions:
        counts[min(int(top_prob * bins), bins - 1)] += (1, not agrees)
    return [
        Bin(n / bins, (n + 1) / bins, int(total), int(differing))
        for n, (total, differing) in enumerate(counts)
    ]


def found_below(positions: Sequence[tuple[float, bool]], gamma: float) -> tuple[float, float]:
    """The share of positions with p1 < γ, and the share of the disagreements among them."""
    below = [agrees for top_prob, agrees in positions if top_prob < gamma]
    differing = sum(not agrees for _, agrees in positions)
    return len(below) / (len(positions) or 1), below.count(False) / (differing or 1)


def caught(positions: Sequence[tuple[float, bool]], gammas: Sequence[float]) -> list[Caught]:
    """`found_below` for several γ."""
    return [Caught(gamma, *found_below(positions, gamma)) for gamma in gammas]


@dataclass(frozen=True)
class Caught:
    """Under ``gamma``: the share of positions, and the share of the disagreements (the recall)."""

    gamma: float
    positions: float
    disagreements: float


# -- γ --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suggestion:
    """gamma: the largest one that nudges no more than the target. share: what it is expected to
    nudge. measured: whether the target lies within what was swept."""

    gamma: float
    share: float
    measured: bool


def suggest(shares: Sequence[tuple[float, float]], target: float) -> Suggestion:
    """γ for a target share of nudged tokens.

    Args:
        shares: (γ, nudged share), at least one.

    A larger γ nudges more, apart from chance: the shares are first made to rise (the closest
    rising ones, by the mean square), then read off between the swept γ on straight lines.
    """
    gammas = [gamma for gamma, _ in sorted(shares)]
    rising = increasing([share for _, share in sorted(shares)])
    if rising[0] > target:
        return Suggestion(gammas[0], rising[0], measured=False)
    if rising[-1] <= target:
        return Suggestion(gammas[-1], rising[-1], measured=rising[-1] == target)
    last = max(n for n, share in enumerate(rising) if share <= target)
    gap = rising[last + 1] - rising[last]
    part = (target - rising[last]) / gap
    gamma = gammas[last] + part * (gammas[last + 1] - gammas[last])
    return Suggestion(gamma, target, measured=True)


def unending(stopped: Sequence[tuple[float, float]]) -> list[float]:
    """The γ at which answers seldom end by themselves, though they can. (Where the base model is
    hardly ever unsure, nobody ends them.)

    Args:
        stopped: (γ, share of answers that ended by themselves).
    """
    most = max((share for _, share in stopped), default=0.0)
    return [gamma for gamma, share in stopped if share < ENDING * most]


def increasing(values: Sequence[float]) -> list[float]:
    """The closest values that never fall (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), size + count
        blocks.append((mean, size))
    return [mean for mean, size in blocks for _ in range(size)]
