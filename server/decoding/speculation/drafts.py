"""What may be drafted, and how. `verify` and `predraft` are two uses of the aligned model's memory
(`server.decoding.memory`).

Knows: what a request asks for, and vocabularies. Does not know: sessions, vLLM, HTTP.
"""

from __future__ import annotations

from server.core import AnswerRequest
from server.engines.base import Engine, TurnParams
from server.text.tokenizer import Tokenizer


def share_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether what either model writes can be read by the other as the same ids."""
    return one.shares_ids_with(other) and other.shares_ids_with(one)


def bent_by(request: AnswerRequest) -> str | None:
    """The field of a request by which what comes next depends on more than the text and the
    likeliest token; None: there is none."""
    if not request.sampling.greedy:
        return "temperature"
    if request.grammar is not None:
        return request.grammar.field
    if request.thinking is not None:
        return "thinking_token_budget"
    return next(request.adjusting(), None)


def can_draft(request: AnswerRequest, base: Engine, aligned: Engine) -> bool:
    """Whether what comes next depends on the text alone, and both models read the same ids."""
    return bent_by(request) is None and share_ids(base.info.tokenizer, aligned.info.tokenizer)


def turn_ahead(
    request: AnswerRequest, max_tokens: int, word: tuple[int, ...] | None = None
) -> TurnParams:
    """A turn of the aligned model that may serve for any that it will be asked for."""
    return TurnParams(
        request.sampling,
        max_tokens=max_tokens,
        word=word,
        top=max(request.top_logprobs or 1, 2),  # a word's turn wants two
        stop_token_ids=request.stop_token_ids,
    )
