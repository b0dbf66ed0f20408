"""What a request asks of the logits processor, of whichever model runner.

A request opts in through ``SamplingParams.extra_args``:

    nudge_below   γ: force the stop token at the first position with p1 < γ
    nudge_word    ids of the word so far: force the stop token once the word is complete
    nudge_greedy  with nudge_word: whether the arg max is what will be sampled
    nudge_stop    the id of the stop token to force
    nudge_adjust  what else the request wants (`server.engines.vllm.logits.Adjustment`), or that
                  as JSON

Does not know: batches, sessions, HTTP.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import torch
from vllm.config import ModelConfig
from vllm.sampling_params import SamplingParams

from server.text.tokenizer import Tokenizer

FORCED = 1e9
"""A logit that wins at any temperature and under any penalty."""


class Wish(NamedTuple):
    """log_gamma, word, adjust: None where the request doesn't want it."""

    stop: int = 0
    log_gamma: float | None = None
    word: list[int] | None = None
    greedy: bool = False
    adjust: dict[str, Any] | None = None

    @classmethod
    def of(cls, params: SamplingParams) -> Wish:
        args = params.extra_args or {}
        gamma = args.get("nudge_below")
        log_gamma = None
        if gamma is not None:
            log_gamma = math.log(gamma) if gamma > 0 else -math.inf
        return cls(
            args.get("nudge_stop", 0),
            log_gamma,
            args.get("nudge_word"),
            args.get("nudge_greedy", False),
            args.get("nudge_adjust"),
        )


def validate(params: SamplingParams) -> None:
    """Raises `ValueError`."""
    args = params.extra_args or {}
    if isinstance(args.get("nudge_adjust"), str):  # by HTTP, where values are flat
        args["nudge_adjust"] = json.loads(args["nudge_adjust"])
    if not isinstance(args.get("nudge_adjust", {}), dict):
        raise ValueError("nudge_adjust must be a mapping")
    if not {"nudge_below", "nudge_word"} & args.keys():
        return
    if not isinstance(args.get("nudge_stop"), int):
        raise ValueError("nudge_stop must be the id of a stop token")
    if not isinstance(args.get("nudge_below", 0.0), int | float):
        raise ValueError("nudge_below must be a probability")
    if not isinstance(args.get("nudge_word", []), list):
        raise ValueError("nudge_word must be a list of token ids")


def force(logits: torch.Tensor, rows: torch.Tensor, stops: torch.Tensor) -> None:
    """Let nothing but the stop token win where a row is to end.

    Args:
        logits: (rows, vocabulary), changed. rows: which are to end. stops: each row's stop token.
    """
    column = stops.unsqueeze(-1)
    kept = logits.gather(-1, column)
    logits.scatter_(-1, column, kept.masked_fill(rows.unsqueeze(-1), FORCED))


def tokenizer_of(model: ModelConfig) -> Tokenizer:
    """The model's, as the engine's process loads it."""
    return Tokenizer.load(
        str(model.tokenizer),
        revision=model.tokenizer_revision,
        trust_remote_code=model.trust_remote_code,
    )
