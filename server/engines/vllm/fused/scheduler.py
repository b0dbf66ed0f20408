"""vLLM's own scheduler, which reserves room for prompts that are longer to the draft model.

Knows: vLLM's schedulers. Does not know: why.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from server.engines.vllm.backend import LONGER


def roomy(vllm_config: Any, **kwargs: Any) -> Scheduler:
    """As ``scheduler_cls``: vLLM calls it as it would the class."""
    asynchronous = vllm_config.scheduler_config.async_scheduling
    made = (AsyncScheduler if asynchronous else Scheduler)(vllm_config=vllm_config, **kwargs)
    made.num_lookahead_tokens += LONGER
    return made
