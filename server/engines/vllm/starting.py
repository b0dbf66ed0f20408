"""How the engine of a configuration is started, and on what it computes.

Knows: which setting is which argument of the engine. Imports torch and vLLM, which takes seconds:
`backend` names it by its path, and it is imported when it is asked.
"""

from __future__ import annotations

import os
import platform

import torch

from server.engines.vllm.backend import VllmSettings
from server.engines.vllm.engine import VllmEngine


async def start(name: str, settings: VllmSettings, sharing: int) -> VllmEngine:
    kind, args = VllmEngine, settings.engine_args()
    if settings.drafter is not None:
        from server.engines.vllm.fused import engine as fused

        kind = fused.VllmFusedEngine
        args |= fused.engine_args(settings.drafter, settings.draft_tokens)
    return await kind.start(
        name,
        args,
        device=settings.device,
        cpu_threads=settings.threads(sharing),
        timeout_s=settings.start_timeout_s,
        silence_s=settings.silence_s,
        resumable=settings.resumable,
    )


def hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} × {torch.cuda.device_count()}"
    return f"{len(os.sched_getaffinity(0))} CPU cores ({platform.machine()})"
