"""Two engines that play one with both models, for ``scripts/bench --fused``: the same answers."""

from __future__ import annotations

import pytest

from scripts.benchmark.fused import PlayedByTwo
from server.core import AnswerRequest, NudgingConfig, PromptPair
from server.decoding.nudged import Nudged
from server.decoding.speculation.fused import Fused
from server.decoding.stream import whole
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine
from tests.noise import noise
from tests.unit.decoding.test_verify import GREEDY, tokenizer


@pytest.mark.parametrize("question", ["Hi you", "Well", "A river"])
@pytest.mark.parametrize("gamma", [0.2, 0.6])
async def test_the_answer_is_the_same_and_its_passes_are_counted(question: str, gamma: float):
    own = tokenizer()
    end = own.chat.eos_token_id
    said = noise(own, end)
    base, aligned = (
        ScriptedEngine(EngineInfo(name, "noise", 512, own, (end,)), said)
        for name in ("base", "aligned")
    )
    request, config = AnswerRequest(GREEDY, max_tokens=40), NudgingConfig(gamma=gamma)
    prompt = PromptPair((f"So: {question}",), (f"So: {question}",))
    two = await whole(Nudged(base, aligned, prompt, request, config), request)
    played = PlayedByTwo(base, aligned, 4)
    one = await whole(Fused(played, prompt, request, config), request)
    assert [each.text for each in one[0]] == [each.text for each in two[0]]
    usage = one[1].usage
    # One model on both sides: every draft stands.
    assert 0 < usage.base_steps <= 2 + usage.completion_tokens / 2
    assert 0 < usage.aligned_steps <= 4 * usage.base_steps
