"""Served names: what a request's ``model`` may be.

Knows: what ``NAME``, ``NAME:base``, ``NAME:aligned`` and ``NAME@γ`` mean by the configuration. Does
not know: engines, prompts, HTTP, OpenAI's schemas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

from server.config import Settings
from server.core import NudgeError, NudgingConfig, SamplingParams
from server.policies import PolicySpec

Role = Literal["nudged", "base", "aligned"]

NAMED = 24
"""Names that are told to whoever asks for another one, at most."""

_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+")


class UnknownModel(NudgeError):
    """No model is served under this name (HTTP 404)."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a request's ``model`` names.

    name: of the pair. role: who answers. nudging, sampling, stop: the defaults of a request.
    policies: that a request may name.
    degraded: the aligned model answers alone in the pair's place, for the base engine is dead.
    """

    name: str
    role: Role
    nudging: NudgingConfig
    sampling: SamplingParams
    policies: tuple[PolicySpec, ...] = ()
    stop: tuple[str, ...] = ()
    degraded: bool = False

    @property
    def roles(self) -> tuple[Literal["base", "aligned"], ...]:
        """The models that answer."""
        return ("base", "aligned") if self.role == "nudged" else (self.role,)


class Catalog:
    """The models of a configuration, by the names that they are served under."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._listed = {name: self._read(name) for name in self.names()}

    def names(self) -> Iterator[str]:
        """Every name that ``/v1/models`` lists. ``NAME@γ`` is understood but not listed."""
        for name in self.settings.models:
            yield from (name, f"{name}:base", f"{name}:aligned")

    def resolve(self, model: str) -> Served:
        """Raises `UnknownModel`."""
        return self._listed.get(model) or self._read(model)

    def _read(self, model: str) -> Served:
        name, colon, role = model.partition(":")
        name, at, gamma = name.partition("@")
        settings = self.settings.models.get(name)
        if settings is None or (colon and role not in ("base", "aligned")) or (colon and at):
            raise UnknownModel(_unknown(model, self.names()))
        nudging = settings.nudging.config()
        if at:
            nudging = replace(nudging, gamma=_gamma(gamma, model, self.names()))
        as_role: Role = "nudged" if not colon else "base" if role == "base" else "aligned"
        policies = tuple(settings.allowed.values())
        sampling = settings.sampling.params()
        return Served(name, as_role, nudging, sampling, policies, settings.stop)

    def engine_of(self, name: str, role: Literal["base", "aligned"]) -> str:
        """The name of the engine that answers in a role of a pair."""
        model = self.settings.models[name]
        return model.base if role == "base" else model.aligned

    def root(self, served: Served) -> str:
        """The model behind a served name, of a pair the base model: its name at the hub, or that
        of its folder without where it lies."""
        model = self.settings.engines[self.engine_of(served.name, served.roles[0])].model
        return Path(model).name if Path(model).is_absolute() else model


def _gamma(text: str, model: str, names: Iterator[str]) -> float:
    """Plain decimals only: what else Python reads as a number is no name that anybody meant."""
    if not _DECIMAL.fullmatch(text) or not math.isfinite(gamma := float(text)):
        raise UnknownModel(_unknown(model, names))
    return gamma


def _unknown(model: str, names: Iterator[str]) -> str:
    shown = model if len(model) <= 80 else model[:77] + "..."
    some = list(islice(names, NAMED + 1))
    served = ", ".join(some[:NAMED]) + (", ..." if len(some) > NAMED else "")
    return f"The model {shown!r} does not exist. Served: {served}, and NAME@GAMMA."
