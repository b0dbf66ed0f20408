"""What the stop processor is told of a turn: the ``extra_args`` of a request.

Knows: the keys that `server.engines.vllm.processor` and `logits` read. Does not know: vLLM, which
takes seconds to import; how a request gets there.
"""

from __future__ import annotations

from typing import Any

from server.engines.base import EngineInfo, TurnParams

PROCESSOR = "server.engines.vllm.plugin:NudgeStop"
"""As vLLM is told to load it, on either model runner."""


def extra_args(
    params: TurnParams, info: EngineInfo, prompt_length: int, session: str
) -> dict[str, Any]:
    """
    Args:
        prompt_length: ids of the session's prompt, behind which penalties count.
        session: its key, by which the engine's process tells sessions with a grammar apart.
    """
    extra = _adjustment(params, info, prompt_length, session)
    if params.stop_below is not None:
        extra["nudge_below"] = params.stop_below
    elif params.word is not None:
        extra |= {"nudge_word": list(params.word), "nudge_greedy": params.by_argmax}
    if params.stop_below is not None or params.word is not None:
        extra["nudge_stop"] = info.stop_ids[0]
    return extra


def seed(params: TurnParams) -> int | None:
    """Of a turn's request: the same one would draw the same numbers in every turn."""
    sampling = params.sampling
    if sampling.seed is None or sampling.greedy:
        return None
    return (sampling.seed * 1_000_003 + params.turn) % 2**31


def _adjustment(
    params: TurnParams, info: EngineInfo, prompt_length: int, session: str
) -> dict[str, Any]:
    """What `server.engines.vllm.logits.Adjustment` is told in the engine's process."""
    if not params.adjusted:
        return {}
    sampling = params.sampling
    adjust: dict[str, Any] = {
        "output_from": prompt_length,
        "bias": [list(each) for each in sampling.logit_bias],
        "not_before": [list(each) for each in params.not_before],
    }
    if sampling.penalized:
        adjust["penalties"] = [
            sampling.presence_penalty,
            sampling.frequency_penalty,
            sampling.repetition_penalty,
        ]
    if params.grammar is not None:
        adjust["grammar"] = params.grammar.source
        adjust["begun"] = params.grammar.begun
        adjust["session"] = session
        adjust["ends"] = list(info.stop_ids)
    return {"nudge_adjust": adjust}
