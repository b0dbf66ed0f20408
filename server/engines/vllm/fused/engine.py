"""A vLLM engine that holds a pair: the base model, and the aligned one as its draft model.

Knows: how it is started, and what its requests ask for and report. Does not know: what the rule
is (`rule`), the policy, HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import vllm
from vllm import TokensPrompt
from vllm.sampling_params import RequestOutputKind

from server.core import ConfigError, TokenIds
from server.engines.base import EngineInfo, Token
from server.engines.fused import Asked, Cost, Position
from server.engines.vllm import outputs
from server.engines.vllm.backend import LONGER
from server.engines.vllm.engine import VllmEngine, stop_ids
from server.engines.vllm.fused.rule import told as alternatives
from server.engines.vllm.fused.wish import Wish
from server.text.tokenizer import Tokenizer

EXTENSION = "server.engines.vllm.fused.worker.Fused"
SCHEDULER = "server.engines.vllm.fused.scheduler.roomy"

OWN_PROMPTS = "prompts of their own"
"""The salt of what answers leave in the prefix cache whose draft model has another prompt."""


def engine_args(aligned: str, drafted: int) -> dict[str, Any]:
    """vLLM's arguments that make an engine one of these.

    Args:
        aligned: the model that drafts. drafted: tokens of a draft.
    """
    speculative = {"method": "draft_model", "model": aligned, "num_speculative_tokens": drafted}
    return {
        "speculative_config": speculative,
        "worker_extension_cls": EXTENSION,
        "scheduler_cls": SCHEDULER,
    }


class VllmFusedEngine(VllmEngine):
    """See `server.engines.fused.FusedEngine`. Made by `start`, with `engine_args` among its
    arguments."""

    aligned: EngineInfo
    longer = LONGER

    async def _warm_up(self) -> None:
        await self._fuse()
        await super()._warm_up()
        ids = self.info.tokenizer.encode_prompt("Hello, who are you?")
        asked = Asked(0.5, word=(), most=3, top=1)
        async with aclosing(self.positions(ids, asked, Cost())) as positions:
            async for _ in positions:
                pass

    async def _fuse(self) -> None:
        """Have the engine's workers put the rule in place. Raises `ConfigError`."""
        llm, name = self._core.llm, self.info.name
        config = llm.vllm_config
        if not config.use_v2_model_runner:
            raise ConfigError(f"engine {name!r}: two models in one engine need the V2 model runner")
        model = config.speculative_config.draft_model_config
        # Its own: vLLM gives a draft model the other one's.
        tokenizer = await asyncio.to_thread(
            Tokenizer.load,
            str(model.model),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
        info = self.info
        alike = info.tokenizer.shares_ids_with(tokenizer)
        if not (alike and tokenizer.shares_ids_with(info.tokenizer)):
            raise ConfigError(
                f"engine {name!r}: its two models must have one vocabulary, cut alike, which "
                f"{info.model!r} and {model.model!r} don't have"
            )
        self.aligned = replace(
            info, model=str(model.model), tokenizer=tokenizer, stop_ids=stop_ids(model, tokenizer)
        )
        self._drafted = config.speculative_config.num_speculative_tokens
        ends = self.aligned.stop_ids
        # Where an answer is handed back, one of two that the base model wouldn't have written.
        strays = (ends[0], next(each for each in (*ends, 0, 1) if each != ends[0]))
        self._stops = tuple({*ends, *strays})
        base_ends = (*info.stop_ids, *info.tokenizer.turn_ids)
        await llm.collective_rpc("fuse", args=(list(base_ends), list(ends), list(strays)))

    async def positions(self, ids: TokenIds, asked: Asked, cost: Cost) -> AsyncGenerator[Position]:
        core = self._core
        watch, request_id = core.watch, core.next_request_id()
        *prompt, first = ids
        given = TokensPrompt(prompt_token_ids=prompt)
        if asked.drafting is not None:
            given["cache_salt"] = OWN_PROMPTS
            room = self.aligned.context_length - len(asked.drafting)
            asked = replace(asked, most=min(asked.most, room))
        request = core.llm.generate(given, _sampling(asked, first, self._stops), request_id)
        watch.reading[request_id] = len(prompt)
        unread = 1  # positions that are the prompt's last token
        try:
            with core.at_work():
                async with aclosing(request) as events:
                    while True:
                        with watch.waits():
                            output = await anext(events, None)
                        if output is None:
                            return
                        if watch.reading.pop(request_id, None) is not None:
                            cached = output.num_cached_tokens or 0
                            cost.prefilled += len(prompt) - cached
                            if cost.cached is None:
                                cost.cached = cached
                        self._count(request_id, cost)
                        for position in _positions(output.outputs[0]):
                            if unread:
                                unread -= 1
                            elif position.aligned is None and position.token != position.base.id:
                                return  # it was handed back
                            else:
                                yield position
        finally:
            watch.reading.pop(request_id, None)
            self._count(request_id, cost)

    def _count(self, request_id: str, cost: Cost) -> None:
        passes = self._core.counted(request_id, 0)
        cost.passes += passes
        cost.drafts += passes * self._drafted


def _sampling(asked: Asked, first: int, stops: tuple[int, ...]) -> vllm.SamplingParams:
    """
    Args:
        first: the prompt's last token, which the request leaves to its first position.
        stops: at which a request of any answer ends.
    """
    wish = Wish(asked.gamma, asked.word, first, asked.top, asked.drafting)
    return vllm.SamplingParams(
        temperature=0.0,
        max_tokens=asked.most + 1,
        stop_token_ids=[*stops, *asked.stops],
        logprobs=2 * asked.top,
        # What was read before has nothing of this one's draft model.
        skip_reading_prefix_cache=asked.drafting is not None,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=wish.extra_args(),
        skip_clone=True,
    )


def _positions(completion: vllm.CompletionOutput) -> Iterator[Position]:
    told = zip(completion.token_ids, outputs.positions(completion.logprobs), strict=True)
    for number, logprobs in told:
        base, aligned = alternatives(logprobs)
        yield Position(
            number, Token(*base[0], base), Token(*aligned[0], aligned) if aligned else None
        )
