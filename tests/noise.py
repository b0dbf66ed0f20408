"""A model that isn't one: a position's distribution hangs on the whole context, and on it alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

from server.engines.scripted import Distribution
from server.text.tokenizer import Tokenizer


def noise(tokenizer: Tokenizer, end: int) -> Distribution:
    ids = [i for i in range(tokenizer.size) if tokenizer.token_bytes(i)]

    def distribution(prompt: Sequence[int], output: Sequence[int]) -> list[tuple[int, float]]:
        draws = random.Random(repr([*prompt, *output]))
        if draws.random() < 0.05:
            return [(end, 1.0)]
        first = draws.uniform(0.05, 1)
        one, two, three = draws.sample(ids, 3)
        rest = min(1 - first, first / 2)
        return [(one, first), (two, rest * 0.6), (three, rest * 0.4)]

    return distribution
