"""The part of ``scripts/gpu-check`` in which a guide is waited for: its schedule, and who waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scripts.gpu.schedule import Schedule, spans, waits

pytest.importorskip("vllm")
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from scripts.gpu import guide_processor
from scripts.gpu.guide_processor import Guide

TOOK = [(1, 4.0), (16, 7.0), (64, 10.0)]
ALWAYS = SamplingParams(extra_args={"guide": [1.0, TOOK, 0]})
PLAIN = SamplingParams()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("tokens", [1, 2, 100, 2000])
def test_a_schedule_has_so_many_tokens_and_that_share_of_them_nudged(share: float, tokens: int):
    found = spans(tokens, share, 3)
    nudged, base = (sum(each) for each in zip(*found, strict=True))
    assert nudged + base == tokens
    assert abs(nudged / tokens - share) <= 4 * (share * (1 - share) / tokens) ** 0.5
    # Only at its beginning no nudge, only at its end no base span.
    assert all(own for own, _ in found[1:])
    assert all(other for _, other in found[:-1])
    assert found == spans(tokens, share, 3)
    assert tokens < 100 or share in (0, 1) or found != spans(tokens, share, 4)


@pytest.mark.parametrize(
    ("share", "rows", "expected"), [(0.1, 1, 0.1), (0.1, 2, 0.19), (0.5, 3, 0.875), (0.0, 64, 0.0)]
)
def test_a_step_waits_where_any_row_is_nudged(share: float, rows: int, expected: float):
    assert waits(share, rows) == pytest.approx(expected)
    schedule = Schedule(share, TOOK, 1)
    found = [schedule.next_s(rows) > 0 for _ in range(4000)]
    assert np.mean(found) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("rows", "ms"), [(1, 4.0), (6, 5.0), (16, 7.0), (40, 8.5), (64, 10.0), (80, 10.0)]
)
def test_it_waits_as_long_as_a_step_of_so_many_nudged_rows_takes(rows: int, ms: float):
    assert Schedule(1.0, TOOK, 0).next_s(rows) == pytest.approx(ms / 1e3)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Milliseconds."""
    found: list[float] = []
    sleeping = SimpleNamespace(sleep=lambda seconds: found.append(round(1e3 * seconds, 6)))
    monkeypatch.setattr(guide_processor, "time", sleeping)
    return found


def step(guide: Any, slots: list[int] | None = None, rows: int = 2) -> None:
    logits = torch.arange(float(5 * rows)).reshape(rows, 5)
    before = logits.clone()
    ctx = () if slots is None else (SimpleNamespace(idx_mapping_np=np.array(slots)),)
    assert torch.equal(guide.apply(logits, *ctx), before)


def test_on_v1_a_batch_waits_for_its_guided_rows(slept: list[float]):
    guide = Guide(SimpleNamespace(), torch.device("cpu"), False)
    step(guide)
    guide.update_state(BatchUpdate(2, (), [(0, PLAIN, [1], []), (1, PLAIN, [1], [])], ()))
    step(guide)
    assert slept == []
    guide.update_state(BatchUpdate(8, (), [(row, ALWAYS, [1], []) for row in range(2, 8)], ()))
    step(guide)
    guide.update_state(None)
    step(guide)
    assert slept == [5.0, 5.0]
    moved = [(7, 2, MoveDirectionality.UNIDIRECTIONAL)]
    guide.update_state(BatchUpdate(3, (2, 3, 4, 5, 6), (), moved))
    step(guide)
    assert slept[2:] == [4.0]
    guide.update_state(BatchUpdate(2, (2,), (), ()))
    step(guide)
    assert len(slept) == 3


def test_on_v2_a_batch_waits_for_its_guided_slots(slept: list[float]):
    guide = Guide(SimpleNamespace(), SimpleNamespace())
    assert [guide.add_request(slot, ALWAYS) for slot in range(6)] == [True] * 6
    assert guide.add_request(6, PLAIN) is False
    guide.apply_staged_writes()
    step(guide, [6])
    assert slept == []
    step(guide, [6, 3])
    step(guide, [5, 4, 3, 2, 1, 0])
    assert slept == [4.0, 5.0]
    guide.add_request(3, PLAIN)  # the slot is another's
    step(guide, [6, 3])
    assert len(slept) == 2
