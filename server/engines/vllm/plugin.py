"""What vLLM is told to load, whichever model runner it has.

vLLM takes a class of its runner's own interface, and nobody tells the class which runner that is
until one is made of it. So this is one of both, and what it makes is `processor`'s on the V1 runner
and `slots`'s on V2. Knows: what either gives. Does not know: what is done with it.
"""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor

from server.engines.vllm import wishes

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SlotsProcessor
except ImportError:  # vLLM before 0.31, with the V1 runner
    SlotsProcessor = object


class NudgeStop(LogitsProcessor, SlotsProcessor):  # type: ignore[misc]  # mypy doesn't read vLLM
    """See `server.engines.vllm.processor.NudgeStop` and `server.engines.vllm.slots.NudgeStop`."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        wishes.validate(sampling_params)

    def __new__(cls, vllm_config: VllmConfig, *given: Any) -> Any:
        """given: the device, and whether memory is pinned; on V2 the runner's requests."""
        if len(given) == 2:
            from server.engines.vllm.processor import NudgeStop as Made
        else:
            from server.engines.vllm.slots import NudgeStop as Made  # type: ignore[assignment]
        return Made(vllm_config, *given)
