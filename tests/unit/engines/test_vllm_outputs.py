"""What vLLM reports of its positions, read as the contract's tokens."""

from __future__ import annotations

import math

import pytest
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, RequestOutput

from server.engines.vllm import outputs

CHANCES = {3: 0.5, 7: 0.3, 9: 0.2}


def told(sampled: int) -> RequestOutput:
    """One position with all its tokens, as vLLM tells of it: the one sampled is in front of all."""
    ids = [sampled, *CHANCES]
    logprobs = FlatLogprobs()
    logprobs.append_fast(ids, [math.log(CHANCES[each]) for each in ids], [0] * 4, [None] * 4)  # type: ignore[arg-type]
    output = CompletionOutput(0, "", [sampled], 0.0, logprobs)
    return RequestOutput("r", None, [1], None, [output], finished=False)


@pytest.mark.parametrize("sampled", CHANCES)
def test_a_position_has_each_token_once_also_where_vllm_merged_it_with_another(sampled: int):
    merged = told(7)
    merged.add(told(sampled), aggregate=True)
    for number, output in ((7, told(7)), (sampled, told(sampled))):
        (token,) = outputs.tokens(output.outputs[0], 1000)
        assert token.id == number
        assert math.exp(token.logprob) == pytest.approx(CHANCES[number])
    first, second = outputs.tokens(merged.outputs[0], 1000)
    assert (first.id, second.id) == (7, sampled)
    for token in (first, second):
        found = dict(zip(token.top.ids.tolist(), token.top.logprobs.tolist(), strict=True))
        assert {number: math.exp(value) for number, value in found.items()} == pytest.approx(
            CHANCES
        )
