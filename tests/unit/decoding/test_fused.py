"""Both models in one engine: the same answers as of two, on engines made of noise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.core import AnswerRequest, Finished, NudgingConfig, PromptPair
from server.decoding.nudged import Nudged
from server.decoding.speculation.fused import Fused
from server.decoding.stream import whole
from tests.fused import PlayedTogether
from tests.unit.decoding.test_verify import GREEDY, pair, tokenizer


@given(
    seed=st.integers(0, 10**6),
    agree=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    gamma=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0, 1.5]),
    drafted=st.integers(1, 8),
    start=st.sampled_from(["aligned", "base"]),
    most=st.sampled_from([1, 7, 60]),
    context=st.sampled_from([20, 512]),
    prompt=st.sampled_from(
        [("Hi you",) * 2, ("Hi you ",) * 2, ("Hi you", "Well, hi"), ("A b", "Hi ")]
    ),
    stops=st.sampled_from([(), (300, 340, 380)]),
    scores=st.sampled_from([None, 1]),
    breaks=st.sampled_from([0, 20]),
)
async def test_the_answer_is_the_same(
    seed, agree, gamma, drafted, start, most, context, prompt, stops, scores, breaks
):
    request = AnswerRequest(GREEDY, max_tokens=most, stop_token_ids=stops, top_logprobs=scores)
    config = NudgingConfig(gamma=gamma, start=start)
    engines = pair(seed, agree, context)
    prompts = PromptPair((prompt[0],), (prompt[1],), headers=("Question:",))
    lengths = [len(tokenizer().encode_prompt(each.removesuffix(" "))) for each in prompt]
    together = PlayedTogether(*engines, drafted, *lengths, longer=9, breaks=breaks)
    two = await whole(Nudged(*engines, prompts, request, config), request)
    one = await whole(Fused(together, prompts, request, config), request)
    assert one[0] == two[0]
    assert ends(one[1]) == ends(two[1])
    assert not together.running


def ends(end: Finished) -> tuple[object, ...]:
    usage = end.usage
    return end.stop_reason, end.matched, usage.base_tokens, usage.aligned_tokens, usage.rounds
