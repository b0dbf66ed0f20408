"""What is said over ``/inference/v1/generate``: ids in and out, and sampling parameters whole.

vLLM offers it with ``--enable-scale-out`` (0.26 to 0.30 always). Nothing of it is detokenized.
Without I/O. Knows: this path, of vLLM. Does not know: connections, sessions, when a turn ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.core import TokenIds
from server.engines.base import UNKNOWN, Token
from server.engines.remote import protocol
from server.engines.remote.protocol import Asked, Chunk, Malformed, Way
from server.engines.vllm import told

MOST = 19
"""Alternatives that can be asked for: as many as vLLM tells, less one. It counts the token that was
drawn as one of them, whether or not it is among the likeliest."""


def turn(asked: Asked) -> dict[str, Any]:
    """The body of a turn's request."""
    params = asked.params
    sampling = protocol.sampling(asked)
    if asked.plugin:
        extra = told.extra_args(params, asked.info, asked.prompt_length, asked.session)
        sampling |= {"extra_args": extra} if extra else {}
    return _request(asked.model, asked.ids, params.reported, sampling) | {"stream": True}


def look(model: str, ids: TokenIds) -> dict[str, Any]:
    """The body of a greedy request that isn't streamed, for one token."""
    return _request(model, ids, 1, {"max_tokens": 1, "temperature": 0} | protocol.neutral())


def _request(model: str, ids: TokenIds, top: int, sampling: dict[str, Any]) -> dict[str, Any]:
    if top:
        sampling |= {"logprobs": top + 1}
    return {
        "model": model,
        "token_ids": ids,
        "sampling_params": sampling | {"detokenize": False},
    }


def chunk(event: Mapping[str, Any], top: int) -> Chunk:
    """Raises `Malformed`."""
    try:
        if not event["choices"]:
            return Chunk()
        choice = event["choices"][0]
        finish = choice.get("finish_reason")
        tokens = list(_tokens(choice, top))
        return Chunk(tokens, finish, tokens.pop() if finish == "stop" and tokens else None)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Malformed(f"no token ids: {str(event)[:120]}") from error


def _tokens(choice: Mapping[str, Any], top: int) -> Iterator[Token]:
    numbers = choice.get("token_ids") or ()
    if not top:
        yield from (Token(int(number), UNKNOWN, ()) for number in numbers)
        return
    content = (choice.get("logprobs") or {}).get("content") or ()
    for number, each in zip(numbers, content, strict=True):
        ranked = [(_id(one), float(one["logprob"])) for one in each["top_logprobs"]]
        yield protocol.token(int(number), float(each["logprob"]), ranked, top)


def _id(one: Mapping[str, Any]) -> int:
    """As a number, or spelled, as before 0.31."""
    return int(one["token_id"]) if "token_id" in one else protocol.spelled(one["token"])


GENERATE = Way("/inference/v1/generate", turn, chunk)
