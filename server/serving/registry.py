"""Served names, and the engines behind them.

Knows: which engines a configuration starts, in what state each is, what ``NAME``, ``NAME:base``,
``NAME:aligned`` and ``NAME@γ`` mean, and who answers while an engine is dead. Does not know: how a
pair's answers are written, when a dead engine is started again, HTTP, OpenAI's schemas.
"""

from __future__ import annotations

import asyncio
import gc
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from server.config import Settings
from server.core import (
    AnswerRequest,
    ConfigError,
    EngineUnavailable,
    InvalidRequest,
    Message,
    NudgeError,
    NudgingConfig,
    PromptPair,
    SamplingParams,
    TokenIds,
)
from server.decoding.alone import Alone
from server.decoding.strategies import Pair, misfits
from server.decoding.stream import Writer
from server.engines.base import Engine, EngineInfo
from server.policies import POLICIES, PolicySpec
from server.text.grammar.compiler import GrammarCompiler
from server.text.prompts import PromptEnd, Prompts

Role = Literal["nudged", "base", "aligned"]

Progress = Callable[[str, str, float], None]
"""Called with an engine's name, its state (loading, ready, failed) and the seconds it took."""

Starter = Callable[[str, Settings], Awaitable[Engine]]
"""Starts the engine of this name; see `start_engine`."""

State = Literal[
    "loading",
    "ready",  # every engine lives
    "degraded",  # one is dead, and yet every model answers, some by the aligned model alone
    "engine_unavailable",  # one is dead, and so a model can't answer
]


_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+")


class UnknownModel(NudgeError):
    """No model is served under this name (HTTP 404)."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a request's ``model`` names.

    name: of the pair. role: who answers. nudging, sampling: the defaults a request starts from.
    policies: that a request may name.
    degraded: the aligned model answers alone in the pair's place, for the base engine is dead.
    """

    name: str
    role: Role
    nudging: NudgingConfig
    sampling: SamplingParams
    policies: tuple[PolicySpec, ...] = ()
    degraded: bool = False

    @property
    def roles(self) -> tuple[Literal["base", "aligned"], ...]:
        """The models that answer."""
        return ("base", "aligned") if self.role == "nudged" else (self.role,)


class Registry:
    """The engines of a configuration and the models served from them.

    engines: by name. A dead one stays until another takes its place. grammars: of answers that
    must match a schema.
    restarts: by engine, how often it was started again. degraded_answers: by model, how many were
    left to its aligned model alone.
    """

    def __init__(self, settings: Settings, starter: Starter | None = None) -> None:
        """``starter``: instead of `start_engine`."""
        self.settings = settings
        self.created = int(time.time())
        self.engines: dict[str, Engine] = {}
        self.grammars = GrammarCompiler()
        self.restarts = dict.fromkeys(settings.engines, 0)
        self.degraded_answers = dict.fromkeys(settings.models, 0)
        self._starter = starter or start_engine
        self._prompts: dict[str, Prompts] = {}
        self._pairs = {name: Pair(name, model) for name, model in settings.models.items()}

    # -- engines -----------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether everything was loaded. What happened since is in `state`."""
        return len(self._prompts) == len(self.settings.models)

    @property
    def state(self) -> State:
        if not self.ready:
            return "loading"
        if all(map(self.lives, self.settings.engines)):
            return "ready"
        return "degraded" if all(map(self._answers, self.settings.models)) else "engine_unavailable"

    def lives(self, engine: str) -> bool:
        """Whether the engine of this name is loaded and lives."""
        return engine in self.engines and self.engines[engine].alive

    def _answers(self, name: str) -> bool:
        """Whether a request for ``NAME`` that asks for nothing special can be served."""
        model = self.settings.models[name]
        needed = [getattr(model, role) for role in model.own.engines]
        stands_in = model.degraded == "aligned" and model.own.stands_in
        return self.lives(model.aligned) and (stands_in or all(map(self.lives, needed)))

    async def start(self, progress: Progress = lambda *_: None) -> None:
        """Start the engines, one after the other, then make the pairs.

        Raises:
            ConfigError, EngineUnavailable: what went wrong; the engines started so far are
                closed again.
        """
        try:
            for name in self.settings.engines:
                self.engines[name] = await self._start(name, progress)
            tokenizers = {name: engine.info.tokenizer for name, engine in self.engines.items()}
            for name, model in self.settings.models.items():
                for problem in misfits(model, tokenizers):
                    raise ConfigError(f"models.{name}.{problem}")
                self._prompts[name] = Prompts(
                    tokenizers[model.base],
                    tokenizers[model.aligned],
                    model.base_prompt,
                    model.chat_template,
                )
            infos = [engine.info for engine in self.engines.values()]
            self.grammars.models = [(info.tokenizer, info.stop_ids) for info in infos]
        except BaseException:
            await self.aclose()
            raise

    async def restart(self, name: str, progress: Progress = lambda *_: None) -> None:
        """Close what is left of a dead engine, and start it anew in its place.

        Raises:
            ConfigError, EngineUnavailable: it can't be started; it stays dead.
        """
        await self.engines[name].aclose()
        self.engines[name] = await self._start(name, progress)
        self.restarts[name] += 1
        # The dead one is in reference cycles, and its sockets stay open as long as it is.
        await asyncio.to_thread(gc.collect)

    async def _start(self, name: str, progress: Progress) -> Engine:
        began = time.monotonic()
        progress(name, "loading", 0.0)
        try:
            engine = await self._starter(name, self.settings)
        except BaseException:
            progress(name, "failed", time.monotonic() - began)
            raise
        progress(name, "ready", time.monotonic() - began)
        return engine

    async def aclose(self) -> None:
        self._prompts.clear()
        engines = list(self.engines.values())
        self.engines.clear()
        closing = [engine.aclose() for engine in engines]
        await asyncio.gather(self.grammars.aclose(), *closing)

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
        policies = tuple(settings.allowed.values())
        return Served(name, as_role, nudging, settings.sampling.params(), policies)

    def root(self, served: Served) -> str:
        """The model behind a served name, of a pair the base model: its name at the hub, or that
        of its folder without where it lies."""
        model = self.settings.engines[self._engine_name(served.name, served.roles[0])].model
        return Path(model).name if Path(model).is_absolute() else model

    def context_length(self, served: Served) -> int | None:
        """Ids that fit into the context of who answers, of a pair into both; None while the
        engines load."""
        if not self.ready:
            return None
        return min(self._info(served.name, role).context_length for role in served.roles)

    def stand_in(self, served: Served, nudging: NudgingConfig) -> Served:
        """Who answers now: as asked, or the aligned model alone, ``degraded``, where the base
        engine is dead and the model's configuration allows that.

        Nothing stands in for the policies that nudging is compared with.
        """
        model = self.settings.models[served.name]
        if (
            self.ready
            and served.role == "nudged"
            and model.degraded == "aligned"
            and POLICIES[nudging.policy].stands_in
            and not self.lives(model.base)
            and self.lives(model.aligned)
        ):
            return replace(served, degraded=True)
        return served

    # -- answers -----------------------------------------------------------------------------

    def prompts(
        self,
        served: Served,
        messages: Sequence[Message],
        kwargs: Mapping[str, Any] | None = None,
        end: PromptEnd = "open",
    ) -> PromptPair:
        self._expect_ready()
        return self._prompts[served.name].render(messages, kwargs, end)

    def info(self, served: Served, role: Literal["base", "aligned"]) -> EngineInfo:
        """What the engine of a served model says of itself, its tokenizer among it."""
        self._expect_ready()
        return self._info(served.name, role)

    def writer(
        self, served: Served, prompt: PromptPair, request: AnswerRequest, nudging: NudgingConfig
    ) -> Writer:
        """The writer of one answer to a conversation.

        Raises `EngineUnavailable`, `ContextLengthExceeded`, `InvalidRequest`.
        """
        self._expect_ready()
        self._check_token_ids(served, request)
        if served.degraded:
            writer = Alone(self._engine(served.name, "aligned"), "aligned", prompt.aligned, request)
            self.degraded_answers[served.name] += 1
            return writer
        if served.role == "nudged":
            return self._pairs[served.name].writer(self._living, prompt, request, nudging)
        text = prompt.base if served.role == "base" else prompt.aligned
        return Alone(self._engine(served.name, served.role), served.role, text, request)

    def _check_token_ids(self, served: Served, request: AnswerRequest) -> None:
        """Raises `InvalidRequest` for token ids that don't name one token of each speaker."""
        given = {
            "stop_token_ids": request.stop_token_ids,
            "logit_bias": [token for token, _ in request.sampling.logit_bias],
        }
        if not any(given.values()):
            return
        tokenizers = [self._info(served.name, role).tokenizer for role in served.roles]
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
        return self._info(served.name, served.role).tokenizer.decode(prompt)

    def continuation(
        self, served: Served, prompt: str | TokenIds, request: AnswerRequest, *, bos: bool = True
    ) -> Writer:
        """The writer that continues a raw prompt with one model alone, verbatim; ``bos``: behind
        the tokenizer's BOS, if it has one.

        Raises `EngineUnavailable`, `ContextLengthExceeded`, `InvalidRequest`.
        """
        self._expect_ready()
        self._check_token_ids(served, request)
        assert served.role != "nudged"
        engine = self._engine(served.name, served.role)
        spelled: str | None = None
        if not isinstance(prompt, str):
            unknown = [token for token in prompt if not 0 <= token < engine.info.tokenizer.size]
            if unknown:
                raise InvalidRequest(
                    f"{len(unknown)} of the prompt's token ids are not in the vocabulary of "
                    f"{engine.info.tokenizer.size} tokens",
                    param="prompt",
                )
        else:
            spelled, prompt = prompt, engine.info.tokenizer.encode_prompt(prompt, bos=bos)
        return Alone(engine, served.role, prompt, request, spelled)

    def engine(self, served: Served, role: Literal["base", "aligned"]) -> Engine:
        """For whoever measures. Raises `EngineUnavailable`."""
        self._expect_ready()
        return self._engine(served.name, role)

    def _engine(self, name: str, role: Literal["base", "aligned"]) -> Engine:
        """Raises `EngineUnavailable` where it is dead."""
        return self._living(self._engine_name(name, role))

    def _living(self, engine: str) -> Engine:
        if not self.lives(engine):
            raise EngineUnavailable(f"engine {engine!r} died and is being started again")
        return self.engines[engine]

    def _info(self, name: str, role: Literal["base", "aligned"]) -> EngineInfo:
        """What is fixed about an engine outlives it."""
        return self.engines[self._engine_name(name, role)].info

    def _engine_name(self, name: str, role: Literal["base", "aligned"]) -> str:
        model = self.settings.models[name]
        return model.base if role == "base" else model.aligned


async def start_engine(name: str, all_settings: Settings) -> Engine:
    """Raises `ConfigError`, `EngineUnavailable`."""
    settings = all_settings.engines[name]
    if settings.backend == "scripted":
        from server.engines.scripted import ScriptedEngine

        return ScriptedEngine.from_folder(name, settings.model, **settings.args)
    from server.engines.vllm.engine import VllmEngine  # imports torch and vLLM: seconds

    return await VllmEngine.start(
        name,
        settings.engine_args(),
        device=settings.device,
        cpu_threads=all_settings.threads(name),
        timeout_s=settings.start_timeout_s,
        silence_s=settings.silence_s,
        resumable=settings.resumable,
    )


def _gamma(text: str, model: str, names: Iterator[str]) -> float:
    """Plain decimals only: what else Python reads as a number is no name that anybody meant."""
    if not _DECIMAL.fullmatch(text) or not math.isfinite(gamma := float(text)):
        raise UnknownModel(_unknown(model, names))
    return gamma


def _unknown(model: str, names: Iterator[str]) -> str:
    shown = model if len(model) <= 80 else model[:77] + "..."
    return f"The model {shown!r} does not exist. Served: {', '.join(names)}, and NAME@GAMMA."
