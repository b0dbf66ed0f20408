"""What is said over HTTP: the body of a turn's request, and what comes back.

Knows: ``/v1/completions`` as vLLM speaks it, with token ids in and out, and the one other form in
which log probabilities come with ids (llama.cpp's). Without I/O. Does not know: connections,
sessions, when a turn ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from server.core import SamplingParams, TokenIds
from server.engines.base import UNKNOWN, EngineInfo, Token, TurnParams
from server.engines.vllm import told

LINE_LIMIT = 1 << 24
"""Bytes of an event. One position takes some hundred."""

_SPELLED = "token_id:"
"""How vLLM writes a token that is to be told as its id."""


class Malformed(Exception):
    """What came is nothing that this protocol has."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream, or a whole answer that isn't streamed.

    finish: why the server ended, where it did. stopped: the token with which it ended, which is
        text no more.
    """

    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    stopped: Token | None = None

    @property
    def positions(self) -> int:
        return len(self.tokens) + (self.stopped is not None)


@dataclass(frozen=True, slots=True)
class Asked:
    """A turn, as it is asked of a server.

    ids: the context. plugin: whether the server has our stop processor; without it the stream is
        read as long as it is wanted. again: tokens of the turn that came before it failed.
        prompt_length, session: see `told.extra_args`.
    """

    params: TurnParams
    info: EngineInfo
    ids: TokenIds
    model: str
    plugin: bool
    prompt_length: int
    session: str
    again: int = 0


@dataclass(frozen=True, slots=True)
class Way:
    """How a server can be asked for a turn: where, in which words, and what its events say."""

    path: str
    turn: Callable[[Asked], dict[str, Any]]
    chunk: Callable[[Mapping[str, Any], int], Chunk]


def sampling(asked: Asked) -> dict[str, Any]:
    """vLLM's sampling parameters of a turn, by any way."""
    params, info = asked.params, asked.info
    wanted = params.sampling
    found = neutral() | {
        "max_tokens": min(params.max_tokens, info.context_length - len(asked.ids)),
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "top_k": wanted.top_k,
        "min_p": wanted.min_p,
        "stop_token_ids": [*info.stop_ids, *params.ends, *params.stop_token_ids],
    }
    seed = told.seed(params)
    if seed is not None:  # what was drawn before it failed is not drawn again
        found["seed"] = seed + asked.again
    return found


def neutral() -> dict[str, Any]:
    """What is the processor's here. Else the server's generation_config.json would decide."""
    plain = SamplingParams()
    names = ("presence_penalty", "frequency_penalty", "repetition_penalty")
    return {name: getattr(plain, name) for name in names}


def turn(asked: Asked) -> dict[str, Any]:
    """The body of a turn's request."""
    params = asked.params
    body = _request(asked.model, asked.ids, params.reported) | sampling(asked) | {"stream": True}
    if asked.plugin and (
        extra := told.extra_args(params, asked.info, asked.prompt_length, asked.session)
    ):
        body["vllm_xargs"] = {name: _flat(value) for name, value in extra.items()}
    return body


def look(model: str, prompt: TokenIds | str, top: int = 1, **more: Any) -> dict[str, Any]:
    """The body of a greedy request that isn't streamed, for one token."""
    return _request(model, prompt, top) | neutral() | {"max_tokens": 1, "temperature": 0} | more


def _request(model: str, prompt: TokenIds | str, top: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "add_special_tokens": False,
        "return_token_ids": True,
    }
    if top:
        body |= {"logprobs": top, "return_tokens_as_token_ids": True}
    return body


def _flat(value: Any) -> Any:
    """``vllm_xargs`` holds strings, numbers, and lists of these."""
    if isinstance(value, bool):
        return int(value)
    return json.dumps(value) if isinstance(value, dict) else value


# -- what comes back ------------------------------------------------------------------------------


class Events:
    """Bytes of an event stream to its events, of which each is one line here."""

    def __init__(self) -> None:
        self._rest = b""
        self.ended = False

    def push(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Raises `Malformed`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_LIMIT:
            raise Malformed("an event without end")
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # a comment, an empty line, another field
            said = line[5:].strip()
            if said == b"[DONE]":
                self.ended = True
            elif said:
                yield parsed(said)


def parsed(data: bytes) -> dict[str, Any]:
    """An object of JSON. Raises `Malformed`."""
    try:
        content = json.loads(data)
    except ValueError:
        raise Malformed(f"no JSON: {data[:80]!r}") from None
    if not isinstance(content, dict):
        raise Malformed(f"no object: {data[:80]!r}")
    return content


def chunk(event: Mapping[str, Any], top: int) -> Chunk:
    """Raises `Malformed`.

    Args:
        top: alternatives that were asked for at each position.
    """
    try:
        if not event["choices"]:
            return Chunk()
        choice = event["choices"][0]
        finish = choice.get("finish_reason")
        tokens = list(_tokens(choice, top))
        # vLLM tells the token with which it stopped; others leave it out.
        stops = finish == "stop" and choice.get("token_ids")
        return Chunk(tokens, finish, tokens.pop() if stops else None)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Malformed(f"no completion with token ids: {str(event)[:120]}") from error


def _tokens(choice: Mapping[str, Any], top: int) -> Iterator[Token]:
    told_of = choice.get("logprobs")
    numbers: Sequence[int] | None = choice.get("token_ids")
    if not top:
        if numbers is None and choice.get("text"):
            raise ValueError("text without its ids")
        yield from (Token(int(number), UNKNOWN, ()) for number in numbers or ())
    elif not told_of:
        if numbers or choice.get("text"):
            raise ValueError("tokens without probabilities")
    elif "content" in told_of:
        for each in told_of["content"] or ():
            ranked = [(int(one["id"]), float(one["logprob"])) for one in each["top_logprobs"]]
            yield token(int(each["id"]), float(each["logprob"]), ranked, top)
    else:
        if numbers is None:
            numbers = [spelled(each) for each in told_of["tokens"]]
        values = told_of["token_logprobs"]
        for number, value, others in zip(numbers, values, told_of["top_logprobs"], strict=True):
            ranked = [(spelled(one), float(each)) for one, each in others.items()]
            yield token(int(number), float(value), ranked, top)


def spelled(token: str) -> int:
    if not token.startswith(_SPELLED):
        raise ValueError("a token that isn't told as its id")
    return int(token[len(_SPELLED) :])


def token(number: int, logprob: float, ranked: list[tuple[int, float]], top: int) -> Token:
    ranked.sort(key=itemgetter(1), reverse=True)
    return Token(number, logprob, tuple(ranked[:top]))


COMPLETIONS = Way("/v1/completions", turn, chunk)


def scores(answer: Mapping[str, Any], ids: TokenIds, top: int) -> list[Token]:
    """What the model says of each id of a prompt but the first. Raises `Malformed`."""
    try:
        positions = answer["choices"][0]["prompt_logprobs"][1:]
        found = []
        for number, position in zip(ids[1:], positions, strict=True):
            known = {int(each): float(value["logprob"]) for each, value in position.items()}
            found.append(token(number, known[number], list(known.items()), top))
        return found
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise Malformed("no log probabilities of a prompt") from error
