"""A session on vLLM: how a turn becomes a request, and its outputs become tokens.

Imported by `server.engines.vllm.engine` alone, which sets vLLM's environment first. Knows: vLLM's
requests and outputs. Does not know: how an engine is started, the policy, HTTP.

A session here is a list of ids. A turn that the engine ends by itself (at the first uncertain
position, or after a word: a logits processor does it) goes on in one resumable request, which
keeps the KV as it is. Where that can't be had, for other turns, and for what is left of an answer
whose request may grow no more, a turn is one request over the whole context, and vLLM's prefix
cache keeps what it can (docs/adr/0012).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any, TypeVar

import vllm
from vllm import TokensPrompt
from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from server.core import EngineUnavailable, TokenIds
from server.engines.base import EVERY_TOKEN, EngineInfo, Token, TurnEnd, TurnParams
from server.engines.vllm.resumable import Capacity, ResumableRequest, Share
from server.text.words import Part, Word

T = TypeVar("T")

AHEAD = 256
"""Ids that a resumable request may grow by before it has to ask again."""


class Core:
    """What the sessions of one engine share: the engine itself, and what runs in it.

    turn_timeout_s: how long the next token of a turn may take.
    resumable: whether sessions may keep what they have read between turns, from the next turn on.
    """

    def __init__(
        self, llm: AsyncLLM, info: EngineInfo, capacity: Capacity, turn_timeout_s: float
    ) -> None:
        self.llm = llm
        self.info = info
        self.capacity = capacity
        self.turn_timeout_s = turn_timeout_s
        self.resumable = True
        self.running = 0
        self._request_numbers = itertools.count()

    def next_request_id(self) -> str:
        return f"{self.info.name}-{next(self._request_numbers)}"

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While a session has something in the engine, whose death is `EngineUnavailable`."""
        self.running += 1
        try:
            yield
        except EngineDeadError as error:
            raise EngineUnavailable(f"engine {self.info.name!r} died") from error
        finally:
            self.running -= 1

    async def in_time(self, coming: Awaitable[T]) -> T:
        """Wait for the engine's next token. Raises `EngineUnavailable` when that is too long."""
        try:
            async with asyncio.timeout(self.turn_timeout_s):
                return await coming
        except TimeoutError:
            raise EngineUnavailable(
                f"engine {self.info.name!r} wrote nothing for {self.turn_timeout_s:g} s"
            ) from None


class VllmSession:
    """See `server.engines.base.Session`."""

    def __init__(self, core: Core, prompt: TokenIds) -> None:
        self._core = core
        self._ids = list(prompt)
        self._prompt_length = len(prompt)
        self._key = core.next_request_id()
        self._turn: AsyncGenerator[Token | TurnEnd] | None = None
        self._kept: ResumableRequest | None = None
        self._kept_until = 0  # ids when its last turn ended
        self._in_kept = False  # whether the turn that runs, or ran last, is in it
        self._ended = True  # whether the engine is through with that turn
        self._share: Share | None = Share()  # None: no more, for this answer
        self.steps = 0
        self.prefilled = 0

    @property
    def length(self) -> int:
        return len(self._ids)

    def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        self._turn = self._generate(params)
        return self._turn

    async def _generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        info = self._core.info
        word = params.word_with(info.tokenizer)
        async with self._turn_runs():
            while True:
                room = info.context_length - len(self._ids)
                if room <= 0:
                    self._ended = True
                    yield TurnEnd("length")
                    return
                self._ended, taken = False, 0
                most = min(params.max_tokens, room)
                async with contextlib.aclosing(self._outputs(params, most)) as outputs:
                    async for output in outputs:
                        completion = output.outputs[0]
                        reason = completion.finish_reason
                        positions = _positions(completion.logprobs)
                        tokens = list(zip(completion.token_ids, positions, strict=True))
                        self.steps += len(tokens)
                        self._ended = reason is not None
                        last = tokens.pop() if reason == "stop" else None
                        for number, logprobs in tokens:
                            token = _token(number, logprobs, params.top)
                            # Rounding could let p1 and γ disagree between here and the engine;
                            # what is reported must keep the law p1 ≥ γ.
                            below = params.stop_below
                            if below is not None and token.top_prob < below:
                                yield TurnEnd("uncertain", token)
                                return
                            part = word.push(number) if word else Part.INSIDE
                            if part is Part.BEYOND:
                                yield TurnEnd("word", token)
                                return
                            self._ids.append(number)
                            taken += 1
                            yield token
                            if part is Part.LAST:
                                # The engine sees it too, one step later: it may finish that.
                                self._ended = self._in_kept
                                yield TurnEnd("word")
                                return
                        if last is not None:
                            yield _turn_end(_token(*last, params.top), params, info, word)
                            return
                        if reason is not None and taken >= params.max_tokens:
                            yield TurnEnd("length")
                            return
                if not self._ended:
                    raise EngineUnavailable(f"engine {info.name!r} broke a turn off")
                params = _rest(params, taken)  # it went as far as its request could grow

    @contextlib.asynccontextmanager
    async def _turn_runs(self) -> AsyncGenerator[None]:
        """Around a turn. Where it was left before its end, what is under way is aborted."""
        self._ended = False
        with self._core.at_work():
            try:
                yield
            finally:
                self._kept_until = len(self._ids)
                if not self._ended:
                    self.steps += 1  # the step that was under way when the request was aborted
                    await self._forget()

    async def _outputs(self, params: TurnParams, most: int) -> AsyncGenerator[vllm.RequestOutput]:
        """Up to ``most`` tokens of a turn: the last output has a ``finish_reason``."""
        core = self._core
        kept = await self._resumable(params)
        self._in_kept = kept is not None
        held = 0 if kept is None else kept.length
        if kept is not None:
            sampling = _sampling(params, core.info, min(most, AHEAD), self._adjustment(params))
            outputs = kept.turn(self._ids[held:], sampling)
        else:
            outputs = core.llm.generate(
                TokensPrompt(prompt_token_ids=self._ids.copy()),
                _sampling(params, core.info, most, self._adjustment(params)),
                core.next_request_id(),
            )
        given = len(self._ids) - held
        async with contextlib.aclosing(outputs):
            while True:
                output = await core.in_time(anext(outputs, None))
                if output is None:
                    return
                if given:
                    # What a request was begun with may be in the prefix cache.
                    self.prefilled += given - (0 if held else output.num_cached_tokens or 0)
                    given = 0
                yield output

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        core, length = self._core, len(self._ids)
        await self._forget()
        draft = draft[: core.info.context_length - length - 1]
        with core.at_work():
            while True:
                output = await self._checked(draft, top)
                self.steps += 1
                cached = output.num_cached_tokens or 0
                self.prefilled += length + len(draft) - cached
                if not draft or cached < length:
                    break
                # Somebody else wrote the same before, so the engine reads some of the draft in
                # its cache, and doesn't compute what was asked. It has whole blocks only.
                size = core.capacity.block_size
                draft = draft[: max(0, -(-length // size) * size - length)]
        # One entry for each id of prompt and draft: what the model says of it.
        said = [] if output.prompt_logprobs is None else output.prompt_logprobs[length:]
        positions = _positions([*said, *output.outputs[0].logprobs])
        return [_likeliest(logprobs, top) for logprobs in positions]

    async def score(self, top: int) -> list[Token]:
        core = self._core
        await self._forget()
        sampling = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=top,
            skip_reading_prefix_cache=True,  # what is in the cache has no log probabilities
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        with core.at_work():
            output = await self._asked(self._ids.copy(), sampling)
        self.steps += 1
        self.prefilled += len(self._ids)
        assert output.prompt_logprobs is not None
        positions = _positions(output.prompt_logprobs[1:])
        return [
            _token(number, logprobs, top)
            for number, logprobs in zip(self._ids[1:], positions, strict=True)
        ]

    async def _asked(self, ids: TokenIds, sampling: vllm.SamplingParams) -> vllm.RequestOutput:
        """The one output of a request of its own."""
        core = self._core
        request = core.llm.generate(
            TokensPrompt(prompt_token_ids=ids), sampling, core.next_request_id()
        )
        async with contextlib.aclosing(request) as outputs:
            return await core.in_time(anext(outputs))

    async def _checked(self, draft: TokenIds, top: int) -> vllm.RequestOutput:
        """A request that reads a draft behind the context, and draws one token."""
        sampling = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprobs=top,
            prompt_logprobs=top if draft else None,
            # What is in the cache has no log probabilities. Those of the draft will do.
            skip_reading_prefix_cache=False,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
        )
        return await self._asked([*self._ids, *draft], sampling)

    # -- what is kept between turns ----------------------------------------------------------

    async def _resumable(self, params: TurnParams) -> ResumableRequest | None:
        """The request that a turn goes on in; None where it is to be one of its own."""
        if self._share is None or not self._core.resumable or not _ends_by_itself(params):
            return None
        await self._settle()
        read = len(self._ids)
        if self._kept is not None and self._kept.length == read:
            await self._forget()  # it must be given something
        if not self._core.capacity.grow(
            self._share, min(read + AHEAD, self._core.info.context_length)
        ):
            await self._forget()
            self._share = None
            return None
        if self._kept is None:
            self._kept = ResumableRequest(self._core.llm, self._core.next_request_id())
        return self._kept

    async def _settle(self) -> None:
        """See the last turn's end, and whether the request holds what the session does."""
        if self._kept is not None:
            await self._core.in_time(self._kept.settle())
            if self._kept.length > self._kept_until:
                await self._forget()

    async def _forget(self) -> None:
        """Free what the engine keeps. Another turn may begin anew."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            await kept.aclose()
        if self._share is not None:
            self._core.capacity.release(self._share)

    def _adjustment(self, params: TurnParams) -> dict[str, Any]:
        """What `server.engines.vllm.logits.Adjustment` is told in the engine's process."""
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
            adjust["begun"] = params.grammar.begun
            adjust["session"] = self._key
            adjust["ends"] = list(self._core.info.stop_ids)
        return {"nudge_adjust": adjust}

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        if drop:
            await self._settle()
            del self._ids[-drop:]
            if self._kept is not None and self._kept.length > len(self._ids):
                await self._forget()
        self._ids += ids

    async def aclose(self) -> None:
        try:
            if self._turn is not None:
                await self._turn.aclose()
        finally:
            await self._forget()


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


def _positions(logprobs: Any) -> Iterator[dict[int, float]]:
    """The log probability by id that vLLM reports of each position."""
    if isinstance(logprobs, FlatLogprobs):
        for start, end in zip(logprobs.start_indices, logprobs.end_indices, strict=True):
            yield dict(
                zip(logprobs.token_ids[start:end], logprobs.logprobs[start:end], strict=True)
            )
    else:
        for position in logprobs:
            yield {number: each.logprob for number, each in position.items()}


def _token(number: int, logprobs: Mapping[int, float], top: int) -> Token:
    ranked = sorted(logprobs.items(), key=itemgetter(1), reverse=True)
    return Token(number, logprobs[number], tuple(ranked[:top]))


def _likeliest(logprobs: Mapping[int, float], top: int) -> Token:
    return _token(max(logprobs, key=logprobs.__getitem__), logprobs, top)


def _ends_by_itself(params: TurnParams) -> bool:
    """Whether nothing of the turn will be in the engine that isn't in the session.

    A sampled word is ended from here, when the engine has read on, and the tokens of a turn
    without any stop may be taken back. A seeded turn needs a generator of its own, so that it
    draws the same numbers wherever it runs; a resumable request has one for all.
    """
    if params.sampling.seed is not None and not params.sampling.greedy:
        return False
    return params.stop_below is not None or (params.word is not None and params.by_argmax)


def _rest(params: TurnParams, taken: int) -> TurnParams:
    """What is left of a turn after some of its tokens."""
    waits = tuple((token, count - taken) for token, count in params.not_before if count > taken)
    return replace(params, max_tokens=params.max_tokens - taken, not_before=waits)


def _sampling(
    params: TurnParams, info: EngineInfo, most: int, adjustment: dict[str, Any]
) -> vllm.SamplingParams:
    sampling = params.sampling
    everything = params.top >= EVERY_TOKEN
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
        max_tokens=most,
        stop_token_ids=[*info.stop_ids, *params.stop_token_ids],
        logprobs=-1 if everything else params.top,
        # Lists instead of an object for each of so many tokens: a fifth of the time.
        flat_logprobs=everything,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=extra or None,
        skip_clone=True,  # it is made for one turn and never changed
    )
