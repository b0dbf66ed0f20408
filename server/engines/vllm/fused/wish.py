"""What a request of a fused engine asks for: `KEY` in its ``extra_args``.

Knows: the keys. Does not know: vLLM, torch, slots, sessions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

KEY = "nudge_fused"


class Wish(NamedTuple):
    """gamma: of the base model's certainty. word: the tokens so far of the aligned model's word in
    which the answer goes on; None: it is in none. first: the prompt's last token, which the request
    leaves to its first row. top: alternatives of either model that are told of each position."""

    gamma: float
    word: tuple[int, ...] | None
    first: int
    top: int

    @property
    def log_gamma(self) -> float:
        return math.log(self.gamma) if self.gamma > 0 else -math.inf

    def extra_args(self) -> dict[str, Any]:
        word = None if self.word is None else list(self.word)
        return {KEY: [self.gamma, word, self.first, self.top]}

    @classmethod
    def of(cls, extra_args: Mapping[str, Any]) -> Wish | None:
        found = extra_args.get(KEY)
        if found is None:
            return None
        gamma, word, first, top = found
        return cls(gamma, None if word is None else tuple(word), first, top)
