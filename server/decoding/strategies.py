"""How a served pair's answers are written: which writer, on which engines, sped up how.

Knows: a pair's settings, which policies its models allow, and which way of writing was faster.
Does not know: served names, engines' lives, prompts, HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from server.config import ModelSettings
from server.core import AnswerRequest, InvalidRequest, NudgingConfig, PromptPair
from server.decoding.alone import Referenced
from server.decoding.mixtures import MIXTURES, Mixed, check_vocabularies
from server.decoding.nudged import Nudged
from server.decoding.speculation.drafts import can_draft, share_ids
from server.decoding.speculation.predraft import read_along
from server.decoding.speculation.verify import Faster, Measured, verify
from server.decoding.stream import Writer
from server.engines.base import Engine
from server.text.tokenizer import Tokenizer

Living = Callable[[str], Engine]
"""The engine of a name. Raises `EngineUnavailable` where it is dead."""


class Pair:
    """A base and an aligned engine that answer under one name."""

    def __init__(self, name: str, settings: ModelSettings) -> None:
        self._name = name
        self._settings = settings
        self._faster = Faster()

    def writer(
        self, living: Living, prompt: PromptPair, request: AnswerRequest, nudging: NudgingConfig
    ) -> Writer:
        """The writer of one answer by the policy that ``nudging`` names.

        Raises `EngineUnavailable`, `ContextLengthExceeded`, `InvalidRequest`.
        """
        settings = self._settings
        base, aligned = living(settings.base), living(settings.aligned)
        if nudging.policy in MIXTURES:
            untuned = None if nudging.policy == "ensemble" else living(self._untuned())
            return Mixed(base, aligned, untuned, prompt, request, nudging)
        if nudging.policy == "reference":
            return Referenced(base, aligned, prompt, request, nudging)
        if not can_draft(request, base, aligned):
            return Nudged(base, aligned, prompt, request, nudging)
        if settings.verify == "auto":
            verified = self._faster.choose()
            nudged: Nudged = Measured(
                base, aligned, prompt, request, nudging, partial(self._faster.took, verified)
            )
        else:
            verified = settings.verify == "on"
            nudged = Nudged(base, aligned, prompt, request, nudging)
        if verified:
            verify(nudged, settings.verify_tokens)
        elif settings.eager:
            read_along(nudged)
        return nudged

    def _untuned(self) -> str:
        """The engine of the small model before it was aligned."""
        if self._settings.untuned is None:
            raise InvalidRequest(
                f"the policy 'proxy_tuning' needs a third model, and {self._name!r} has none; its "
                f"engine is named by models.{self._name}.untuned in the server's configuration",
                param="nudging.policy",
            )
        return self._settings.untuned


def misfits(model: ModelSettings, tokenizers: Mapping[str, Tokenizer]) -> Iterator[str]:
    """What a pair's settings ask for that its models' vocabularies don't allow: the setting, what
    is wrong with it, a semicolon, and what to do.

    Args:
        tokenizers: by engine. The third model's may be missing, and is taken to fit then.
    """
    base, aligned = tokenizers[model.base], tokenizers[model.aligned]
    policy = model.nudging.policy
    if policy in MIXTURES:
        mixed = [base, aligned]
        if policy == "proxy_tuning" and model.untuned is not None:
            mixed.append(tokenizers.get(model.untuned, base))
        try:
            check_vocabularies(mixed, policy)
        except InvalidRequest as error:
            yield f"nudging.policy: {error}"
    for key, needed in (("verify", model.verify == "on"), ("eager", model.eager)):
        if needed and not share_ids(base, aligned):
            yield (
                f"{key} needs two models with one vocabulary, cut alike, which {model.base!r} and "
                f"{model.aligned!r} don't have; leave it off"
            )
