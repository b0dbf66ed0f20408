"""What resumable requests may hold together: never more than there is, and all of it comes back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")
from server.engines.vllm import build
from server.engines.vllm.resumable import Capacity, Share


def test_a_request_grows_by_blocks():
    capacity, share = Capacity(4, 32, 8), Share()
    assert capacity.grow(share, 33)
    assert share.blocks == 2
    assert capacity.grow(share, 64)
    assert share.blocks == 2
    assert capacity.grow(share, 128)
    assert not capacity.grow(share, 129)
    assert share.blocks == 4, "what it has it keeps"


def test_each_request_takes_one_place_as_long_as_it_lives():
    capacity, first, second = Capacity(100, 32, 1), Share(), Share()
    assert capacity.grow(first, 1)
    assert capacity.grow(first, 90)
    assert not capacity.grow(second, 1)
    capacity.release(first)
    capacity.release(first)
    assert capacity.grow(second, 1)
    assert not capacity.grow(first, 1)


def test_where_there_is_nothing_nothing_is_granted():
    assert not Capacity(-5, 32, 8).grow(Share(), 1)
    assert not Capacity(5, 32, -1).grow(Share(), 1)


@given(
    st.integers(0, 40),
    st.integers(0, 6),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 600)), max_size=60),
)
def test_what_is_granted_never_sums_up_to_more_than_there_is(
    blocks: int, places: int, steps: list[tuple[int, int]]
):
    """Each step: a request, and the length it wants to grow to (0: it ends)."""
    capacity = Capacity(blocks, 32, places)
    shares = [Share() for _ in range(8)]
    for number, length in steps:
        share = shares[number]
        if length:
            before = share.blocks
            granted = capacity.grow(share, length)
            assert share.blocks * 32 >= length if granted else share.blocks == before
        else:
            capacity.release(share)
        assert sum(each.blocks for each in shares) <= blocks
        assert sum(bool(each.blocks) for each in shares) <= places
    for share in shares:
        capacity.release(share)
    one = Share()
    assert capacity.grow(one, blocks * 32 or 1) == bool(blocks and places)


def of(
    version: str,
    *,
    ahead: bool,
    parallel: int = 1,
    drafts: bool = False,
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Blocks for resumable requests in an engine of a vLLM with 100."""
    monkeypatch.setattr(build, "installed", lambda: build.Vllm(version, cpu=False))
    model = SimpleNamespace(is_hybrid=False, max_model_len=64, hf_text_config=SimpleNamespace())
    config = SimpleNamespace(
        cache_config=SimpleNamespace(block_size=32, num_gpu_blocks=100),
        scheduler_config=SimpleNamespace(max_num_seqs=16, async_scheduling=ahead),
        parallel_config=SimpleNamespace(data_parallel_size=parallel),
        model_config=model,
        speculative_config=object() if drafts else None,
    )
    return Capacity.of(config)._blocks


@pytest.mark.parametrize("version", ["0.26.0", "0.30.1", "0.32.0", "0.32.0+cpu", "0.1.dev1+gabc"])
def test_a_vllm_that_loses_a_stop_with_a_step_in_flight_gets_none(
    version: str, monkeypatch: pytest.MonkeyPatch
):
    assert of(version, ahead=True, monkeypatch=monkeypatch) == 0
    assert of(version, ahead=False, monkeypatch=monkeypatch) == 97
    assert of(version, ahead=False, parallel=2, monkeypatch=monkeypatch) == 0
    assert of(version, ahead=False, drafts=True, monkeypatch=monkeypatch) == 0


@pytest.mark.parametrize("version", ["0.33.0", "0.33.1rc1", "0.40.0", "1.0.0"])
def test_a_vllm_that_does_not_gets_them(version: str, monkeypatch: pytest.MonkeyPatch):
    assert of(version, ahead=True, monkeypatch=monkeypatch) == 97
    assert of(version, ahead=False, parallel=2, monkeypatch=monkeypatch) == 97
