"""Resumable requests: what a session has read stays in the engine between its turns.

The one file that uses vLLM's streaming input, which is young: where a vLLM doesn't have it, no
session is kept, and each turn is a request of its own. Knows: that interface, its traps, and how
much of the KV cache such requests may hold. Does not know: what a turn is, the policy, HTTP.

The traps (docs/adr/0012): an idle resumable request can't be preempted, so that a crowd of them
could hold all blocks and freeze the engine for good; and one that grows beyond the model's context
kills the engine for everybody.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import vllm
from vllm import TokensPrompt
from vllm.config import VllmConfig
from vllm.v1.engine.async_llm import AsyncLLM

from server.core import TokenIds
from server.engines.vllm import build

try:
    from vllm.engine.protocol import StreamingInput
except ImportError:  # before it had them
    StreamingInput = None


class Capacity:
    """How much of an engine resumable requests may hold together: blocks of its KV cache, and
    places among the requests that run at once.

    What they may grow to never sums up to more, so each can always go on, whatever the others do.
    A context's worth of blocks, and some places, are left to requests that can be preempted.
    """

    def __init__(self, blocks: int, block_size: int, places: int) -> None:
        self.block_size = block_size
        self._blocks = max(0, blocks)
        self._places = max(0, places)

    @classmethod
    def of(cls, config: VllmConfig) -> Capacity:
        """None at all where resumable requests can't be had or aren't right, or their size isn't
        known."""
        cache, most = config.cache_config, config.scheduler_config.max_num_seqs
        size = int(cache.block_size)
        if not _right_in(config) or config.model_config.is_hybrid:
            return cls(0, size, 0)
        # One block is of one group of layers; where these differ, a context needs some of each.
        groups = _groups(config.model_config.hf_text_config)
        context = -(-config.model_config.max_model_len // size)
        blocks = (cache.num_gpu_blocks or 0) // groups - 1 - context
        return cls(blocks, size, most - max(1, most // 8))

    def grow(self, share: Share, length: int) -> bool:
        """Let a request grow to so many ids, if there is room for that."""
        blocks = -(-length // self.block_size)
        more = max(0, blocks - share.blocks)
        place = not share.blocks
        if more > self._blocks or place > self._places:
            return False
        self._blocks -= more
        self._places -= place
        share.blocks += more
        return True

    def release(self, share: Share) -> None:
        """Take back all that a request holds; the second time does nothing."""
        self._blocks += share.blocks
        self._places += bool(share.blocks)
        share.blocks = 0


class Share:
    """What one resumable request may hold. Changed by `Capacity` alone."""

    def __init__(self) -> None:
        self.blocks = 0


class ResumableRequest:
    """One request that lives through the turns of an answer.

    length: ids that the engine will have read when the next turn begins. The token that a turn
        ended with is none of them: vLLM drops it.
    """

    def __init__(self, llm: AsyncLLM, request_id: str) -> None:
        self._llm = llm
        self.id = request_id
        self._inputs: asyncio.Queue[Any] = asyncio.Queue()
        self._outputs: AsyncGenerator[vllm.RequestOutput] | None = None
        self.length = 0
        self.running = False

    def begin(
        self, ids: TokenIds, sampling: vllm.SamplingParams
    ) -> AsyncGenerator[vllm.RequestOutput]:
        """Append ids, at least one, and go on.

        Returns:
            vLLM's own generator, the same at every turn. Each output that is taken from it is to
            be told to `heard`; a turn's last one has a ``finish_reason``.
        """
        if self._outputs is None:
            self._outputs = self._llm.generate(self._fed(), sampling, self.id)
        self._inputs.put_nowait(StreamingInput(TokensPrompt(prompt_token_ids=ids), sampling))
        self.length += len(ids)
        self.running = True
        return self._outputs

    def heard(self, output: vllm.RequestOutput) -> None:
        completion = output.outputs[0]
        self.length += len(completion.token_ids)
        if completion.finish_reason is not None:
            self.length -= 1
            self.running = False

    async def settle(self) -> None:
        """Wait for the end of a turn whose last outputs nobody needs."""
        while self.running:
            assert self._outputs is not None
            self.heard(await anext(self._outputs))

    async def aclose(self) -> None:
        """End it, and abort what it does."""
        if self._outputs is not None:
            await self._outputs.aclose()
            self._outputs = None
        self.running = False

    async def _fed(self) -> AsyncGenerator[Any]:
        while True:
            yield await self._inputs.get()


def _right_in(config: VllmConfig) -> bool:
    """Whether this vLLM, as it is configured, ends and continues such requests as it should. (Of
    several data-parallel engines, the same one has to: since 0.33. A stop among drafts that were
    taken is counted wrongly before.)"""
    plain = (
        config.speculative_config is None
        and not config.scheduler_config.async_scheduling
        and config.parallel_config.data_parallel_size == 1
    )
    found = build.installed()
    newer = found is not None and build.stops_in_flight(found.version)
    return StreamingInput is not None and (plain or newer)


def _groups(text_config: Any) -> int:
    """In how many groups of layers vLLM keeps a model's KV: of as many layers as the rarest kind
    of attention has."""
    kinds = Counter(getattr(text_config, "layer_types", None) or ["all"])
    rarest = min(kinds.values())
    return sum(-(-count // rarest) for count in kinds.values())
