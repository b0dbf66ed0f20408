"""How a served pair's answers are written: which writer, on which engines, sped up how.

Knows: what writes by each policy of the table (`server.policies`), a pair's settings, and which way
of writing was faster. Does not know: served names, engines' lives, prompts, HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from server.config import ModelSettings
from server.core import (
    AnswerRequest,
    EngineUnavailable,
    InvalidRequest,
    Message,
    NudgingConfig,
    PromptPair,
)
from server.decoding.alone import Referenced
from server.decoding.entropy import ByEntropy
from server.decoding.mixtures import Mixed, check_vocabularies
from server.decoding.nudged import Nudged
from server.decoding.speculation.drafts import can_draft, share_ids
from server.decoding.speculation.fused import Fused, takes, unfusable
from server.decoding.speculation.predraft import ReadAlong
from server.decoding.speculation.verify import Faster, Timed, Verified
from server.decoding.stream import Writer
from server.engines.backend import EngineSettings
from server.engines.base import Engine
from server.engines.fused import FusedEngine
from server.policies import POLICIES, EngineRole, Policy, PolicySpec
from server.text.prompts import Prompts
from server.text.tokenizer import Tokenizer

Living = Callable[[str], Engine]
"""The engine of a name. Raises `EngineUnavailable` where it is dead."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a writer is made of. engines: those that the policy's row names. fused: one that holds
    both models, where it is to be used and lives."""

    pair: Pair
    engines: Mapping[EngineRole, Engine]
    fused: FusedEngine | None
    prompt: PromptPair
    request: AnswerRequest
    nudging: NudgingConfig


Make = Callable[[Order], Writer]


class Pair:
    """A base and an aligned engine that answer under one name."""

    def __init__(self, name: str, settings: ModelSettings) -> None:
        self._name = name
        self.settings = settings
        self.faster = Faster()

    def writer(
        self, living: Living, prompt: PromptPair, request: AnswerRequest, nudging: NudgingConfig
    ) -> Writer:
        """The writer of one answer by the policy that ``nudging`` names.

        Raises `EngineUnavailable`, `ContextLengthExceeded`, `InvalidRequest`.
        """
        spec = POLICIES[nudging.policy]
        if lacking := self.settings.lacks(spec):
            raise InvalidRequest(lacking.replace("NAME", self._name), param="nudging.policy")
        engines = {role: living(self.settings.engines[role]) for role in spec.engines}
        order = Order(self, engines, self._fused(living), prompt, request, nudging)
        return MAKERS[spec.name](order)

    def _fused(self, living: Living) -> FusedEngine | None:
        """None where the two do without it."""
        settings = self.settings
        if settings.fused is None or not settings.uses_fused:
            return None
        try:
            engine = living(settings.fused)
        except EngineUnavailable:
            if settings.mode == "fused":
                raise
            return None
        assert isinstance(engine, FusedEngine)
        return engine


def _nudged(order: Order) -> Writer:
    """With drafts, where the pair is set to have some and this answer can."""
    base, aligned = order.engines["base"], order.engines["aligned"]
    settings, faster = order.pair.settings, order.pair.faster
    given = base, aligned, order.prompt, order.request, order.nudging
    if order.fused is not None:
        refused = unfusable(order.fused, *given)
        if refused is None:
            return Fused(order.fused, *given[2:])
        if settings.mode == "fused":
            field, why = refused
            raise InvalidRequest(
                f"{field!r} {why}, which the one engine of this model can't serve (mode: fused)",
                param=field,
            )
    if not can_draft(order.request, base, aligned):
        return Nudged(*given)
    measures = settings.verify == "auto" and "check" in base.info.abilities
    verified = faster.choose() if measures else settings.verify == "on"
    if verified:
        nudged: Nudged = Verified(*given, settings.verify_tokens)
    else:
        nudged = ReadAlong(*given) if settings.eager else Nudged(*given)
    return Timed(nudged, partial(faster.took, verified)) if measures else nudged


def _of_two(writer: Callable[..., Writer]) -> Make:
    """A writer that is made of a base and an aligned engine."""

    def make(order: Order) -> Writer:
        base, aligned = order.engines["base"], order.engines["aligned"]
        return writer(base, aligned, order.prompt, order.request, order.nudging)

    return make


def _mixed(order: Order) -> Writer:
    engines = order.engines
    return Mixed(
        engines["base"],
        engines["aligned"],
        engines.get("untuned"),
        order.prompt,
        order.request,
        order.nudging,
    )


MAKERS: dict[Policy, Make] = {
    "nudging": _nudged,
    "entropy": _of_two(ByEntropy),
    "reference": _of_two(Referenced),
    "ensemble": _mixed,
    "proxy_tuning": _mixed,
}
"""What writes by each policy of the table."""


def misfits(model: ModelSettings, tokenizers: Mapping[str, Tokenizer]) -> Iterator[str]:
    """What a pair's settings ask for that its models' vocabularies don't allow: the setting, what
    is wrong with it, a semicolon, and what to do.

    Args:
        tokenizers: by engine. The third model's may be missing, and is taken to fit then.
    """
    base, aligned = tokenizers[model.base], tokenizers[model.aligned]
    for spec in model.allowed.values():
        key = "nudging.policy" if spec is model.own else "policies"
        try:
            check_fits(model, spec, tokenizers)
        except InvalidRequest as error:
            yield f"{key}: {error}"
    for key in model.drafting:
        if not share_ids(base, aligned):
            yield (
                f"{key} needs two models with one vocabulary, cut alike, which {model.base!r} and "
                f"{model.aligned!r} don't have; leave it off"
            )


def unfused(
    model: ModelSettings,
    prompts: Prompts,
    tokenizers: Mapping[str, Tokenizer],
    contexts: Mapping[str, int],
    engines: Mapping[str, EngineSettings],
) -> str | None:
    """Why no answer would be written by a model's ``fused`` engine: the setting, what is wrong with
    it, and what to do. None where it has none.

    Args:
        tokenizers, contexts, engines: by engine.
    """
    if model.fused is None or not model.uses_fused:
        return None
    lengths = {name: contexts[name] for name in (model.fused, model.base, model.aligned)}
    if len({*lengths.values()}) > 1:
        held = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        return f"fused: the engines need one context length, and {held}; set max_model_len"
    prompt = prompts.render([Message("user", "Hello!")])
    longer = engines[model.fused].longer
    if not takes(longer, prompt, tokenizers[model.base], tokenizers[model.aligned]):
        return (
            f"fused: the aligned model's prompt is more than {longer} tokens longer than the base "
            "model's, or either has none; shorten its chat_template, or leave fused out"
        )
    return None


def check_fits(model: ModelSettings, spec: PolicySpec, tokenizers: Mapping[str, Tokenizer]) -> None:
    """Raises `InvalidRequest` where a policy needs one vocabulary of models that have several."""
    if spec.one_vocabulary:
        named = [model.engines[role] for role in spec.engines]
        check_vocabularies([tokenizers[name] for name in named if name in tokenizers], spec.name)
