"""What the processors send to the device.

Knows: torch's copies. Does not know: what is sent, or why.
"""

from __future__ import annotations

from typing import Any

import torch


def staged(values: Any, dtype: torch.dtype, pinned: bool) -> torch.Tensor:
    """A tensor on the host, of a sequence or a NumPy array.

    A copy to a GPU waits unless it is from pinned memory; and torch pins what is a tensor already,
    but builds none of a NumPy array in pinned memory.
    """
    told = torch.tensor(values, dtype=dtype)
    return told.pin_memory() if pinned else told


def sent(values: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The same on the device, without waiting until it has arrived."""
    return staged(values, dtype, device.type == "cuda").to(device, non_blocking=True)
