"""What goes to the device, where no GPU is: torch's refusals are those of a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server.engines.vllm.device import sent


@pytest.mark.parametrize("values", [[3, 1], np.array([3, 1])], ids=["list", "array"])
def test_what_is_sent_to_a_gpu_is_pinned_first(monkeypatch: pytest.MonkeyPatch, values):
    """A NumPy array as well, of which torch builds no tensor in pinned memory."""
    pinned: list[torch.Tensor] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        assert device.type == "cuda"
        assert non_blocking
        assert tensor is pinned[-1]
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    found = sent(values, torch.int64, torch.device("cuda"))
    assert found.tolist() == [3, 1]
    assert found.dtype == torch.int64


def test_what_is_sent_to_a_cpu_is_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", None)
    assert sent([True, False], torch.bool, torch.device("cpu")).tolist() == [True, False]
