"""How ``scripts/gpu-check`` times hand-overs, on two engines without a model whose steps last."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")
from scripts.gpu.handover import LONGEST, Times, answer
from server.core import TokenIds
from server.engines.base import EngineInfo, Session
from server.engines.scripted import ScriptedEngine
from tests.noise import noise
from tests.unit.decoding.test_verify import tokenizer

BASE_S, ALIGNED_S = 0.012, 0.004


class Engine(ScriptedEngine):
    """Keeps its session."""

    def open(self, prompt: TokenIds) -> Session:
        self.session = super().open(prompt)
        return self.session


@pytest.fixture
def engines() -> tuple[Engine, Engine]:
    own = tokenizer()
    end = own.chat.eos_token_id

    def engine(name: str, step_s: float) -> Engine:
        return Engine(EngineInfo(name, "noise", 512, own, (end,)), noise(own, end), step_s=step_s)

    return engine("base", BASE_S), engine("aligned", ALIGNED_S)


async def test_a_hand_over_is_timed_from_the_last_token_and_from_the_end(
    engines: tuple[Engine, Engine],
):
    to = Times(), Times()
    await answer(engines, 1, 0.4, 12, to)
    to_base, to_aligned = (each.shown() for each in to)
    # From the end: a step of the one that begins. From the last token: a step of the other before.
    assert to_base["end_ms"] >= 1e3 * BASE_S
    assert to_base["end_ms"] > to_aligned["end_ms"] >= 1e3 * ALIGNED_S
    for its in (to_base, to_aligned):
        assert its["last_p90_ms"] >= its["last_ms"] >= 1e3 * (BASE_S + ALIGNED_S)
        assert its["last_ms"] > its["end_ms"]
    assert to_base["gap_ms"] >= 1e3 * BASE_S
    assert to_base["gap_ms"] > to_aligned["gap_ms"] >= 1e3 * ALIGNED_S


async def test_both_models_hold_the_same_text(engines: tuple[Engine, Engine]):
    await answer(engines, 1, 0.4, 3, (Times(), Times()))
    base, aligned = (each.session for each in engines)
    assert base.length == aligned.length > 3 + 6


async def test_a_turn_that_was_cut_at_its_length_is_no_hand_over(engines: tuple[Engine, Engine]):
    to = Times(), Times()
    engines[0].distribution = lambda *_: [(5, 0.9)]
    engines[0].step_s = engines[1].step_s = 0.0
    await answer(engines, 1, 0.4, 4, to)
    assert len(to[0].gap) == 4 * (LONGEST - 1)
    assert to[1].end == []
    assert to[1].shown()["handovers"] == 0
