"""Muon in single precision, for training on a CPU.

`torch.optim.Muon` makes a step orthogonal in bfloat16, which a CPU without such arithmetic
emulates: that took three quarters of a step's time here. Knows: matrices. Does not know: models.

The method is Keller Jordan's, https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Of matrices alone. rate: of the longest step, by `torch.optim.Muon`'s measure; momentum: with
    Nesterov's look ahead."""

    def __init__(self, matrices: Iterable[Tensor], rate: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        for group in self.param_groups:
            for matrix in group["params"]:
                velocity = self.state[matrix].setdefault("velocity", torch.zeros_like(matrix))
                velocity.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(velocity, group["momentum"])
                rows, columns = matrix.shape
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                matrix.sub_(orthogonal(ahead), alpha=rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are one (they come to .7 to 1.2)."""
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found = wide / wide.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found if wide is matrix else found.T
