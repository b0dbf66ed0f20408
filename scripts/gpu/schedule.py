"""Which tokens are nudged, drawn: each with the same probability, whatever the others are.

Knows: probabilities. Does not know: engines, batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby

import numpy as np


def spans(tokens: int, share: float, seed: int) -> list[tuple[int, int]]:
    """An answer's schedule: so many tokens of the aligned model, then of the base model, and so on.
    None of the aligned model where the base model begins."""
    draws = random.Random(seed)
    nudged = [draws.random() < share for _ in range(tokens)]
    runs = [(own, len(list(run))) for own, run in groupby(nudged)]
    if not runs[0][0]:
        runs.insert(0, (True, 0))
    if runs[-1][0]:
        runs.append((False, 0))
    return [(own[1], base[1]) for own, base in zip(runs[::2], runs[1::2], strict=True)]


def waits(share: float, rows: int) -> float:
    """Of the steps of so many rows, those that wait: where at least one is nudged."""
    return 1 - (1 - share) ** rows


class Schedule:
    """How long each step of a batch waits for a guide that is called where a row is nudged."""

    def __init__(self, share: float, took: Sequence[Sequence[float]], seed: int) -> None:
        """took: (rows, milliseconds) of the guide's steps, with more rows each."""
        self._share = share
        self._rows, self._ms = zip(*took, strict=True)
        self._draws = np.random.default_rng(seed)

    def next_s(self, rows: int) -> float:
        """How long the next step waits; not longer than with the most rows that were measured."""
        nudged = self._draws.binomial(rows, self._share)
        return float(np.interp(nudged, self._rows, self._ms)) / 1e3 if nudged else 0.0
