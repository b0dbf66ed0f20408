"""What vLLM is asked for: the sampling parameters of a turn, a check and a score.

Knows: vLLM's `SamplingParams`. Does not know: what the stop processor reads of them (`told`),
outputs, sessions, when a turn ends.
"""

from __future__ import annotations

import vllm
from vllm.sampling_params import RequestOutputKind

from server.engines.base import EVERY_TOKEN, EngineInfo, TurnParams
from server.engines.vllm import told


def for_check(top: int, drafted: bool) -> vllm.SamplingParams:
    """Of a request that reads a draft, if there is one, behind a context, and draws one token."""
    return vllm.SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprobs=top,
        prompt_logprobs=top if drafted else None,
        # What is in the cache has no log probabilities. Those of the draft will do.
        skip_reading_prefix_cache=False,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def for_reading() -> vllm.SamplingParams:
    """Of a request that reads a prompt into the cache, and draws one token that nobody wants."""
    return vllm.SamplingParams(
        temperature=0.0,
        max_tokens=1,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def for_score(top: int) -> vllm.SamplingParams:
    return vllm.SamplingParams(
        temperature=0.0,
        max_tokens=1,
        prompt_logprobs=top,
        skip_reading_prefix_cache=True,  # what is in the cache has no log probabilities
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def ends_by_itself(params: TurnParams) -> bool:
    """Whether nothing of the turn will be in the engine that isn't in the session.

    A sampled word is ended from here, when the engine has read on, and the tokens of a turn
    without any stop may be taken back. A seeded turn needs a generator of its own, so that it
    draws the same numbers wherever it runs; a resumable request has one for all.
    """
    if params.sampling.seed is not None and not params.sampling.greedy:
        return False
    return params.stop_below is not None or (params.word is not None and params.by_argmax)


def for_turn(
    params: TurnParams, info: EngineInfo, most: int, prompt_length: int, session: str
) -> vllm.SamplingParams:
    """
    Args:
        most: tokens that the request may draw.
        prompt_length: ids of the session's prompt, behind which penalties count.
        session: its key, by which the engine's process tells sessions with a grammar apart.
    """
    sampling = params.sampling
    reported = params.reported
    everything = reported >= EVERY_TOKEN
    extra = told.extra_args(params, info, prompt_length, session)
    return vllm.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=told.seed(params),
        max_tokens=most,
        stop_token_ids=[*info.stop_ids, *params.ends, *params.stop_token_ids],
        logprobs=-1 if everything else reported or None,
        # Lists instead of an object for each of so many tokens: a fifth of the time.
        flat_logprobs=everything,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra or None,
        skip_clone=True,  # it is made for one turn and never changed
    )
