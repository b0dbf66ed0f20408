"""Who is compared: one model alone, or both by a policy.

Knows: how a system is named, and what the registry makes of it. Does not know: data, scores.

    base, aligned       one model alone
    nudged, nudged@0.3  both by a policy, under its name in `server.policies`; where that has a
                        threshold, with the model's own or with another
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from server.config import ModelSettings
from server.core import NudgingConfig
from server.evaluation.data import EvaluationError, Item
from server.policies import DEFAULT, GAMMA, POLICIES, Policy, PolicySpec, Threshold

if TYPE_CHECKING:
    from server.evaluation.runs import Answer, Setup

_BY_NAME: dict[str, PolicySpec] = {spec.system: spec for spec in POLICIES.values()}

ALONE = ("base", "aligned")
"""One model alone."""

KNOWN = (*ALONE, *_BY_NAME)


class Elsewhere(Protocol):
    """Somebody who answers without our engines."""

    async def answer(self, item: Item, setup: Setup) -> Answer: ...


@dataclass(frozen=True)
class System:
    """Who answers.

    name: as it is shown and kept. served: the suffix of the served name. nudging: the policy's
    settings, where both models take part. model: of the configuration, instead of the one that is
    measured. stop: more strings that end its answers. elsewhere: it isn't one of ours.
    """

    name: str
    served: str
    nudging: NudgingConfig
    model: str | None = None
    stop: tuple[str, ...] = ()
    elsewhere: Elsewhere | None = None


def parse(name: str, model: ModelSettings) -> System:
    """A system of a served model. Raises `EvaluationError`."""
    own = model.nudging.config()
    if name in ALONE:
        return System(name, f":{name}", own)
    kind, at, text = name.partition("@")
    spec = _BY_NAME.get(kind)
    if spec is None:
        raise EvaluationError(
            f"there is no system {name!r} (there are {', '.join(KNOWN)}; γ goes behind an @, as "
            "in nudged@0.3)"
        )
    if lacking := model.lacks(spec):
        raise EvaluationError(lacking)
    if spec.threshold is None:
        if at:
            raise EvaluationError(f"{kind} knows no γ: write {kind!r} instead of {name!r}")
        return System(kind, "", replace(own, policy=spec.name))
    value = to_threshold(text, spec.threshold) if at else getattr(own, spec.threshold.setting)
    return with_threshold(spec.name, value, own)


def with_threshold(policy: Policy, value: float, own: NudgingConfig) -> System:
    """Both models by a policy that has a threshold, with this one."""
    spec = POLICIES[policy]
    assert spec.threshold is not None
    asked: dict[str, Any] = {"policy": policy, spec.threshold.setting: value}
    nudging = replace(own, **asked)
    return System(f"{spec.system}@{value:g}", "", nudging)


def nudged_at(gamma: float, model: ModelSettings) -> System:
    """Nudging with this γ. Raises `EvaluationError` where the model's own policy has none."""
    if model.own.threshold is not GAMMA:
        raise EvaluationError(
            f"γ has no effect on the model's own policy, {model.own.name!r}; set nudging.policy to "
            "one that has it"
        )
    return with_threshold(DEFAULT, gamma, model.nudging.config())


def parse_all(names: str, model: ModelSettings) -> list[System]:
    """Systems with commas between them, each once. Raises `EvaluationError`."""
    systems = [parse(name.strip(), model) for name in names.split(",") if name.strip()]
    if not systems:
        raise EvaluationError("name at least one system, as in --systems base,aligned,nudged")
    return list({system.name: system for system in systems}.values())


def to_threshold(text: str, threshold: Threshold) -> float:
    """Raises `EvaluationError`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value >= 0 if threshold.zero else value > 0)):
        least = "0 or more" if threshold.zero else "over 0"
        raise EvaluationError(f"{text!r} is no {threshold.symbol}: it must be a number, {least}")
    return value


def to_gammas(text: str) -> Sequence[float]:
    """γ with commas between them, in order, each once. Raises `EvaluationError`."""
    gammas = sorted({to_threshold(part.strip(), GAMMA) for part in text.split(",") if part.strip()})
    if not gammas:
        raise EvaluationError("name at least one γ, as in --gammas 0.2,0.4")
    return gammas
