"""The settings of the policies as somebody says them: in a file, a request, a kept trace.

Knows: which values each may have, once for all who are told. Its defaults and meaning are
`server.core.NudgingConfig`'s. Does not know: which policy listens to which.
"""

from __future__ import annotations

from pydantic import BaseModel, Field

from server.core import EndCheck, NudgingConfig, Speaker
from server.policies import Policy

_DEFAULTS = NudgingConfig()


class PolicySettings(BaseModel):
    """All of them, in their limits."""

    gamma: float = Field(_DEFAULTS.gamma, ge=0, allow_inf_nan=False)
    entropy: float = Field(_DEFAULTS.entropy, gt=0, allow_inf_nan=False)
    policy: Policy = _DEFAULTS.policy
    start: Speaker = _DEFAULTS.start
    end_lookahead: int = Field(_DEFAULTS.end_lookahead, ge=0, le=1024)
    end_check: EndCheck = _DEFAULTS.end_check
    max_rounds: int | None = Field(_DEFAULTS.max_rounds, ge=1)

    def config(self) -> NudgingConfig:
        return NudgingConfig(**self.model_dump())
