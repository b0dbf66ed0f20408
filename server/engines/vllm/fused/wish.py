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
    leaves to its first row. top: alternatives of either model that are told of each position.
    drafting: what the aligned model reads, if that is something else."""

    gamma: float
    word: tuple[int, ...] | None
    first: int
    top: int
    drafting: tuple[int, ...] | None = None

    @property
    def log_gamma(self) -> float:
        return math.log(self.gamma) if self.gamma > 0 else -math.inf

    def extra_args(self) -> dict[str, Any]:
        lists = [None if ids is None else list(ids) for ids in (self.word, self.drafting)]
        return {KEY: [self.gamma, self.first, self.top, *lists]}

    @classmethod
    def of(cls, extra_args: Mapping[str, Any]) -> Wish | None:
        found = extra_args.get(KEY)
        if found is None:
            return None
        gamma, first, top, *lists = found
        word, drafting = (None if ids is None else tuple(ids) for ids in lists)
        return cls(gamma, word, first, top, drafting)
