"""Who is compared: one model alone, or both by a policy.

Knows: how a system is named, and what the registry makes of it. Does not know: data, scores.

    base, aligned              one model alone
    nudged, nudged@0.3         the policy ``nudging``, with the model's own γ or with another
    reference@0.3, ensemble …  any other policy by its name
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from server.config import ModelSettings
from server.core import NudgingConfig, Policy
from server.decoding.mixtures import MIXTURES
from server.evaluation.data import EvaluationError

POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclass(frozen=True)
class System:
    """name: as it is shown and kept. served: the suffix of the served name. nudging: the policy's
    settings, where both models take part."""

    name: str
    served: str
    nudging: NudgingConfig


def parse(name: str, model: ModelSettings) -> System:
    """A system of a served model. Raises `EvaluationError`."""
    own = model.nudging.config()
    if name in ("base", "aligned"):
        return System(name, f":{name}", own)
    kind, at, text = name.partition("@")
    policy = "nudging" if kind == "nudged" else kind
    if policy not in POLICIES:
        known = ["base", "aligned", "nudged", *POLICIES[1:]]
        raise EvaluationError(
            f"there is no system {name!r} (there are {', '.join(known)}; γ goes behind an @, as "
            "in nudged@0.3)"
        )
    if policy in MIXTURES:
        if at:
            raise EvaluationError(f"{kind} knows no γ: write {kind!r} instead of {name!r}")
        if policy == "proxy_tuning" and model.untuned is None:
            raise EvaluationError(
                "proxy_tuning needs a third engine: name it under models.NAME.untuned in the "
                "configuration"
            )
        return System(kind, "", replace(own, policy=policy))
    gamma = to_gamma(text) if at else own.gamma
    return System(f"{kind}@{gamma:g}", "", replace(own, policy=policy, gamma=gamma))


def parse_all(names: str, model: ModelSettings) -> list[System]:
    """Systems with commas between them, each once. Raises `EvaluationError`."""
    systems = [parse(name.strip(), model) for name in names.split(",") if name.strip()]
    if not systems:
        raise EvaluationError("name at least one system, as in --systems base,aligned,nudged")
    return list({system.name: system for system in systems}.values())


def to_gamma(text: str) -> float:
    """Raises `EvaluationError`."""
    try:
        gamma = float(text)
    except ValueError:
        gamma = math.nan
    if not (gamma >= 0 and math.isfinite(gamma)):
        raise EvaluationError(f"{text!r} is no γ: it must be a number, 0 or more")
    return gamma


def to_gammas(text: str) -> Sequence[float]:
    """γ with commas between them, in order, each once. Raises `EvaluationError`."""
    gammas = sorted({to_gamma(part.strip()) for part in text.split(",") if part.strip()})
    if not gammas:
        raise EvaluationError("name at least one γ, as in --gammas 0.2,0.4")
    return gammas
