"""Served names, and the engines behind them.

Knows: which engines a configuration starts, in what state each is, and what ``NAME``,
``NAME:base``, ``NAME:aligned`` and ``NAME@γ`` mean. Does not know: HTTP, OpenAI's schemas.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from server.baselines import Alone, Referenced
from server.config import EngineSettings, Settings
from server.core import (
    AnswerRequest,
    EngineUnavailable,
    InvalidRequest,
    Message,
    NudgeError,
    NudgingConfig,
    PromptPair,
    SamplingParams,
    TokenIds,
)
from server.engines.base import Engine
from server.orchestrator import Nudged, Writer
from server.prompts import Prompts

Role = Literal["nudged", "base", "aligned"]

Progress = Callable[[str, str, float], None]
"""Called with an engine's name, its state (loading, ready, failed) and the seconds it took."""


class UnknownModel(NudgeError):
    """No model is served under this name (HTTP 404)."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a request's ``model`` names.

    name: of the pair. role: who answers. nudging, sampling: the defaults a request starts from.
    """

    name: str
    role: Role
    nudging: NudgingConfig
    sampling: SamplingParams


class Registry:
    """The engines of a configuration and the models served from them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.engines: dict[str, Engine] = {}
        self.was_ready = False
        self._prompts: dict[str, Prompts] = {}

    # -- engines -----------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return len(self._prompts) == len(self.settings.models)

    async def start(self, progress: Progress = lambda *_: None) -> None:
        """Start the engines, one after the other, then make the pairs.

        Raises:
            ConfigError, EngineUnavailable: what went wrong; the engines started so far are
                closed again.
        """
        try:
            for name, engine in self.settings.engines.items():
                began = time.monotonic()
                progress(name, "loading", 0.0)
                try:
                    self.engines[name] = await start_engine(name, engine)
                except BaseException:
                    progress(name, "failed", time.monotonic() - began)
                    raise
                progress(name, "ready", time.monotonic() - began)
            for name, model in self.settings.models.items():
                base = self.engines[model.base].info.tokenizer
                aligned = self.engines[model.aligned].info.tokenizer
                self._prompts[name] = Prompts(base, aligned, model.base_prompt, model.chat_template)
            self.was_ready = True
        except BaseException:
            await self.aclose()
            raise

    async def check_health(self) -> None:
        """Raises `EngineUnavailable` unless every engine is loaded and lives."""
        self._expect_ready()
        for engine in self.engines.values():
            await engine.check_health()

    async def aclose(self) -> None:
        self._prompts.clear()
        engines = list(self.engines.values())
        self.engines.clear()
        await asyncio.gather(*(engine.aclose() for engine in engines))

    def _expect_ready(self) -> None:
        if not self.ready:
            raise EngineUnavailable("the engines are still loading", loading=True)

    # -- names -------------------------------------------------------------------------------

    def names(self) -> Iterator[str]:
        """Every name that ``/v1/models`` lists. ``NAME@γ`` is understood but not listed."""
        for name in self.settings.models:
            yield from (name, f"{name}:base", f"{name}:aligned")

    def resolve(self, model: str) -> Served:
        """Raises `UnknownModel`."""
        name, colon, role = model.partition(":")
        name, at, gamma = name.partition("@")
        settings = self.settings.models.get(name)
        if settings is None or (colon and role not in ("base", "aligned")) or (colon and at):
            raise UnknownModel(_unknown(model, self.names()))
        nudging = settings.nudging.config()
        if at:
            nudging = replace(nudging, gamma=_gamma(gamma, model, self.names()))
        as_role: Role = "nudged" if not colon else "base" if role == "base" else "aligned"
        return Served(name, as_role, nudging, settings.sampling.params())

    # -- answers -----------------------------------------------------------------------------

    def prompts(
        self, served: Served, messages: Sequence[Message], kwargs: Mapping[str, Any] | None = None
    ) -> PromptPair:
        self._expect_ready()
        return self._prompts[served.name].render(messages, kwargs)

    def writer(
        self, served: Served, prompt: PromptPair, request: AnswerRequest, nudging: NudgingConfig
    ) -> Writer:
        """The writer of one answer to a conversation.

        Raises `EngineUnavailable` while loading, `ContextLengthExceeded`.
        """
        self._expect_ready()
        self._check_token_ids(served, request)
        if served.role != "nudged":
            text = prompt.base if served.role == "base" else prompt.aligned
            return Alone(self._engine(served.name, served.role), served.role, text, request)
        policy = Referenced if nudging.policy == "reference" else Nudged
        base, aligned = self._engine(served.name, "base"), self._engine(served.name, "aligned")
        return policy(base, aligned, prompt, request, nudging)

    def _check_token_ids(self, served: Served, request: AnswerRequest) -> None:
        """Raises `InvalidRequest` for token ids that don't name one token of each speaker."""
        given = {
            "stop_token_ids": request.stop_token_ids,
            "logit_bias": [token for token, _ in request.sampling.logit_bias],
        }
        if not any(given.values()):
            return
        roles: Sequence[Literal["base", "aligned"]] = (
            ("base", "aligned") if served.role == "nudged" else (served.role,)
        )
        tokenizers = [self._engine(served.name, role).info.tokenizer for role in roles]
        for field, ids in given.items():
            if ids and not tokenizers[0].same_ids_as(tokenizers[-1]):
                raise InvalidRequest(
                    f"the two models of {served.name!r} have different vocabularies, so a token "
                    f"id in {field!r} is ambiguous; ask {served.name}:base or "
                    f"{served.name}:aligned",
                    param=field,
                )
            size = min(tokenizer.size for tokenizer in tokenizers)
            if unknown := [token for token in ids if token >= size]:
                raise InvalidRequest(
                    f"token id {unknown[0]} in {field!r} is not in the vocabulary of {size} tokens",
                    param=field,
                )

    def echo(self, served: Served, prompt: str | TokenIds) -> str:
        """The text of a raw prompt."""
        if isinstance(prompt, str):
            return prompt
        assert served.role != "nudged"
        return self._engine(served.name, served.role).info.tokenizer.decode(prompt)

    def continuation(
        self, served: Served, prompt: str | TokenIds, request: AnswerRequest
    ) -> Writer:
        """The writer that continues a raw prompt with one model alone, verbatim.

        Raises `EngineUnavailable`, `ContextLengthExceeded`, `InvalidRequest`.
        """
        self._expect_ready()
        self._check_token_ids(served, request)
        assert served.role != "nudged"
        engine = self._engine(served.name, served.role)
        if not isinstance(prompt, str):
            unknown = [token for token in prompt if not 0 <= token < engine.info.tokenizer.size]
            if unknown:
                raise InvalidRequest(
                    f"{len(unknown)} of the prompt's token ids are not in the vocabulary of "
                    f"{engine.info.tokenizer.size} tokens",
                    param="prompt",
                )
        else:
            prompt = engine.info.tokenizer.encode_prompt(prompt)
        return Alone(engine, served.role, prompt, request)

    def _engine(self, name: str, role: Literal["base", "aligned"]) -> Engine:
        model = self.settings.models[name]
        return self.engines[model.base if role == "base" else model.aligned]


async def start_engine(name: str, settings: EngineSettings) -> Engine:
    """Raises `ConfigError`, `EngineUnavailable`."""
    if settings.backend == "scripted":
        from server.engines.scripted import ScriptedEngine

        return ScriptedEngine.from_folder(name, settings.model, **settings.args)
    from server.engines.vllm import VllmEngine  # imports torch and vLLM: seconds

    return await VllmEngine.start(
        name,
        settings.engine_args(),
        device=settings.device,
        timeout_s=settings.start_timeout_s,
    )


def _gamma(text: str, model: str, names: Iterator[str]) -> float:
    try:
        gamma = float(text)
    except ValueError:
        gamma = math.nan
    if not (gamma >= 0 and math.isfinite(gamma)):
        raise UnknownModel(_unknown(model, names))
    return gamma


def _unknown(model: str, names: Iterator[str]) -> str:
    shown = model if len(model) <= 80 else model[:77] + "..."
    return f"The model {shown!r} does not exist. Served: {', '.join(names)}, and NAME@GAMMA."
