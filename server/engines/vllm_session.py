"""A session on vLLM: how a turn becomes a request, and its outputs become tokens.

Imported by `server.engines.vllm` alone, which sets vLLM's environment first. Knows: vLLM's
requests and outputs. Does not know: how an engine is started, the policy, HTTP.

A session here is a list of ids. Each turn is one vLLM request over the whole context; vLLM's
prefix cache keeps the KV between turns, and a logits processor ends the request exactly at the
first uncertain position or at the end of the word (docs/adr/0001).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import vllm
from vllm import TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from server.core import EngineUnavailable, TokenIds
from server.engines.base import EngineInfo, Token, TurnEnd, TurnParams
from server.text import Part, Word


class Core:
    """What the sessions of one engine share: the engine itself, and what runs in it."""

    def __init__(self, llm: AsyncLLM, info: EngineInfo) -> None:
        self.llm = llm
        self.info = info
        self.running = 0
        self._request_numbers = itertools.count()

    def next_request_id(self) -> str:
        return f"{self.info.name}-{next(self._request_numbers)}"


class VllmSession:
    """See `server.engines.base.Session`."""

    def __init__(self, core: Core, prompt: TokenIds) -> None:
        self._core = core
        self._ids = list(prompt)
        self._prompt_length = len(prompt)
        self._key = core.next_request_id()
        self._turn: AsyncGenerator[Token | TurnEnd] | None = None
        self.steps = 0

    @property
    def length(self) -> int:
        return len(self._ids)

    def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        self._turn = self._generate(params)
        return self._turn

    async def _generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        info = self._core.info
        room = info.context_length - len(self._ids)
        if room <= 0:
            yield TurnEnd("length")
            return
        request = self._core.llm.generate(
            TokensPrompt(prompt_token_ids=self._ids.copy()),
            _sampling(params, info, room, self._adjustment(params)),
            self._core.next_request_id(),
        )
        self._core.running += 1
        ended = False
        word = _word(params, info)
        try:
            async with contextlib.aclosing(request) as outputs:
                async for output in outputs:
                    completion = output.outputs[0]
                    reason = completion.finish_reason
                    tokens = list(zip(completion.token_ids, completion.logprobs, strict=True))
                    self.steps += len(tokens)
                    ended = reason is not None
                    last = tokens.pop() if reason == "stop" else None
                    for number, logprobs in tokens:
                        token = _token(number, logprobs, params.top)
                        # Rounding could let p1 and γ disagree between here and the engine;
                        # what is reported must keep the law p1 ≥ γ.
                        if params.stop_below is not None and token.top_prob < params.stop_below:
                            yield TurnEnd("uncertain", token)
                            return
                        part = word.push(number) if word else Part.INSIDE
                        if part is Part.BEYOND:
                            yield TurnEnd("word", token)
                            return
                        self._ids.append(number)
                        yield token
                        if part is Part.LAST:
                            yield TurnEnd("word")
                            return
                    if last is not None:
                        yield _turn_end(_token(*last, params.top), params, info, word)
                    elif reason is not None:
                        yield TurnEnd("length")
        except EngineDeadError as error:
            raise EngineUnavailable(f"engine {info.name!r} died") from error
        finally:
            self._core.running -= 1
            if not ended:
                self.steps += 1  # the step that was under way when the request was aborted

    def _adjustment(self, params: TurnParams) -> dict[str, Any]:
        """What `server.engines.vllm_adjust.Adjustment` is told in the engine's process."""
        if not params.adjusted:
            return {}
        sampling = params.sampling
        adjust: dict[str, Any] = {
            "output_from": self._prompt_length,
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
            adjust["session"] = self._key
            adjust["ends"] = list(self._core.info.stop_ids)
        return {"nudge_adjust": adjust}

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        if drop:
            del self._ids[-drop:]
        self._ids += ids

    async def aclose(self) -> None:
        if self._turn is not None:
            await self._turn.aclose()


def _word(params: TurnParams, info: EngineInfo) -> Word | None:
    if params.word is None:
        return None
    word = Word(info.tokenizer)
    for number in params.word:
        word.push(number)
    return word


def _turn_end(last: Token, params: TurnParams, info: EngineInfo, word: Word | None) -> TurnEnd:
    """What a stop token means: the model's own end, or one that the processor forced.

    A sampled word is ended by this side, which sees the tokens, before the processor forces
    anything; a stop token that arrives here was drawn.
    """
    wanted = Token(*last.top[0], last.top)
    if params.stop_below is not None:
        # With a grammar p1 is not seen here. Base or not, its end and its doubt are one event.
        doubt = params.grammar is not None and last.id in info.stop_ids
        if doubt or last.top_prob < params.stop_below:
            return TurnEnd("uncertain", wanted)
    if word is not None:
        drawn = wanted if params.by_argmax else last
        if drawn.id in params.stop_token_ids and word.push(drawn.id) is Part.BEYOND:
            return TurnEnd("word", drawn)  # it would have begun the next word
        if params.by_argmax and wanted.id not in (*info.stop_ids, *params.stop_token_ids):
            tied = len(last.top) > 1 and last.top[0][1] == last.top[1][1]
            return TurnEnd("word", None if tied else wanted)
    return TurnEnd("stop", last)


def _token(number: int, logprobs: Mapping[int, Any], top: int) -> Token:
    ranked = sorted(((i, each.logprob) for i, each in logprobs.items()), key=lambda e: -e[1])
    return Token(number, logprobs[number].logprob, tuple(ranked[:top]))


def _sampling(
    params: TurnParams, info: EngineInfo, room: int, adjustment: dict[str, Any]
) -> vllm.SamplingParams:
    sampling = params.sampling
    extra = dict(adjustment)
    if params.stop_below is not None:
        extra["nudge_below"] = params.stop_below
    elif params.word is not None:
        extra |= {"nudge_word": list(params.word), "nudge_greedy": params.by_argmax}
    if params.stop_below is not None or params.word is not None:
        extra["nudge_stop"] = info.stop_ids[0]
    seed = None
    if sampling.seed is not None and not sampling.greedy:
        # The same seed in every turn would draw the same numbers in every turn.
        seed = (sampling.seed * 1_000_003 + params.turn) % 2**31
    return vllm.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=seed,
        max_tokens=min(params.max_tokens, room),
        stop_token_ids=[*info.stop_ids, *params.stop_token_ids],
        logprobs=params.top,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra or None,
    )
