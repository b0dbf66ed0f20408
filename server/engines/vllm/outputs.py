"""What vLLM reports of its positions, as the contract's tokens.

Knows: the shapes of vLLM's outputs and log probabilities. Does not know: requests, sessions, when
a turn ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
import vllm
from vllm.logprobs import FlatLogprobs

from server.engines.base import UNKNOWN, Distribution, Token


def tokens(completion: vllm.CompletionOutput, top: int) -> list[Token]:
    numbers, logprobs = completion.token_ids, completion.logprobs
    if not top:
        return [Token(number, UNKNOWN, ()) for number in numbers]
    if isinstance(logprobs, FlatLogprobs):
        bounds = zip(numbers, logprobs.start_indices, logprobs.end_indices, strict=True)
        return [_with_all(number, logprobs, start, end) for number, start, end in bounds]
    told = zip(numbers, positions(logprobs), strict=True)
    return [token(number, position, top) for number, position in told]


def _with_all(number: int, logprobs: FlatLogprobs, start: int, end: int) -> Token:
    """A position with all its tokens, in front of which the one sampled is told once more; but
    where vLLM has merged two outputs, for a reader that was slow, it is told there alone."""
    ids = np.array(logprobs.token_ids[start:end], np.int64)
    values = np.array(logprobs.logprobs[start:end], np.float64)
    twice = int((ids[1:] == ids[0]).any())
    return Token(number, logprobs.logprobs[start], Distribution(ids[twice:], values[twice:]))


def positions(logprobs: Any) -> Iterator[dict[int, float]]:
    """The log probability by id that vLLM reports of each position."""
    for position in logprobs:
        yield {number: each.logprob for number, each in position.items()}


def token(number: int, logprobs: Mapping[int, float], top: int) -> Token:
    ranked = sorted(logprobs.items(), key=itemgetter(1), reverse=True)
    return Token(number, logprobs[number], tuple(ranked[:top]))


def likeliest(logprobs: Mapping[int, float], top: int) -> Token:
    return token(max(logprobs, key=logprobs.__getitem__), logprobs, top)
