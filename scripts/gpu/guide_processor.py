"""A guide that is called inside the engine's step, as a logits processor: what it takes, not what
it says.

Knows: either of vLLM's logits-processor interfaces. Does not know: who asks for it, how long a
guide's step is.

A request opts in through ``extra_args``:

    guide   [share, [[rows, ms], …], seed]: of its tokens that are nudged; what a step of the
            guide takes with so many rows

As such a guide has to, it waits until the step's probabilities are known to the host. Then, where
any row is to be nudged, the whole batch waits for as long as the guide's step with that many rows
takes. Which rows are is drawn; nothing is changed in the logits.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from scripts.gpu.schedule import Schedule

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SlotsProcessor
except ImportError:  # vLLM before 0.31, with the V1 runner
    SlotsProcessor = object

NAME = "scripts.gpu.guide_processor:Guide"
"""As vLLM is told to load it, on either model runner."""

KEY = "guide"


class Guide(LogitsProcessor, SlotsProcessor):  # type: ignore[misc]
    """On the V1 runner its requests are known by row, on V2 by slot."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """All is taken as it comes: only ``scripts.gpu.guide`` asks."""

    def __init__(self, vllm_config: VllmConfig, *given: Any) -> None:
        """given: the device, and whether memory is pinned; on V2 the runner's requests."""
        self._guided: dict[int, bool] = {}
        self._asked: list[Any] | None = None
        self._schedule: Schedule | None = None

    def is_argmax_invariant(self) -> bool:
        return False

    def _ask(self, params: SamplingParams) -> bool | None:
        """Those that run together ask for the same."""
        asked = (params.extra_args or {}).get(KEY)
        if asked is None:
            return None
        if asked != self._asked:
            self._asked, self._schedule = asked, Schedule(*asked)
        return True

    # -- V1 --------------------------------------------------------------------------------------

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._guided, batch_update, lambda params, *_: self._ask(params))

    # -- V2 --------------------------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._guided.pop(req_idx, None)
        if self._ask(sampling_params):
            self._guided[req_idx] = True
        return req_idx in self._guided

    # -- either ----------------------------------------------------------------------------------

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        there = self._guided if ctx is None else self._guided.keys() & set(ctx.idx_mapping_np)
        if there and self._schedule is not None:
            (logits.amax(-1) - logits.logsumexp(-1)).tolist()  # waits for the device
            time.sleep(self._schedule.next_s(len(there)))
        return logits
