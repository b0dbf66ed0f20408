"""What can be set, as one frozen value, and which settings can't work together.

Does not know: where values come from (`server.config.reading`), what any backend sets (its row says
that), HTTP.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from pydantic import (
    ByteSize,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.config.nudging import PolicySettings
from server.core import SamplingParams
from server.engines import backends
from server.engines.backend import EngineSettings, Frozen
from server.engines.backends import BACKENDS
from server.engines.report import did_you_mean
from server.policies import DEFAULT, POLICIES, EngineRole, Policy, PolicySpec
from server.text.thinking import ThoughtName
from server.text.tools.formats import FormatName

MAX_STOPS = 16

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s:@]+$")]


def _backend_of(engine: Any) -> Any:
    """By which the settings of an engine are told apart."""
    if isinstance(engine, EngineSettings):
        return engine.backend
    return engine.get("backend", backends.DEFAULT) if isinstance(engine, dict) else backends.DEFAULT


if TYPE_CHECKING:
    AnyEngine = EngineSettings
else:
    _TAGGED = (Annotated[row.settings, Tag(name)] for name, row in BACKENDS.items())
    AnyEngine = Annotated[Union[tuple(_TAGGED)], Discriminator(_backend_of)]  # noqa: UP007


class NudgingSettings(Frozen, PolicySettings):
    """Defaults of the policies for one served model; a request's ``nudging`` overrides them."""

    @field_validator("gamma")
    @classmethod
    def _is_a_probability(cls, gamma: float) -> float:
        """γ over 1 is for who wants the aligned model to write everything; 40 is a slip."""
        if gamma > 2:
            meant = gamma / 10 if gamma < 10 else gamma / 100 if gamma <= 100 else 0.4
            raise ValueError(
                f"γ is a probability, and this is {gamma:g}: set {meant:g}, or 1.01 if the aligned "
                "model is to write everything"
            )
        return gamma


class SamplingSettings(Frozen):
    """What a request that doesn't say gets. Unset: OpenAI's defaults (temperature 1, top_p 1)."""

    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)

    def params(self) -> SamplingParams:
        return SamplingParams(**self.model_dump())


class ModelSettings(Frozen):
    """A served model: a base and an aligned engine, by name, and how they work together."""

    base: str
    aligned: str
    untuned: str | None = None
    """The small model before it was aligned, for the policies that need it."""
    nudging: NudgingSettings = NudgingSettings()
    policies: tuple[Policy, ...] = (DEFAULT,)
    """What a request's ``nudging.policy`` may name, besides the model's own."""
    sampling: SamplingSettings = SamplingSettings()
    stop: tuple[str, ...] = Field((), max_length=MAX_STOPS)
    """Stop strings of requests that name none."""
    base_prompt: str | None = None
    """Jinja template of the base model's prompt, or ``chat``; unset: Question/Answer."""
    base_stops: tuple[str, ...] = ()
    """Headers of turns at which the base model gives way, besides those of its prompt."""
    chat_template: str | None = None
    """Instead of the aligned model's own chat template."""
    aligned_system: str | None = Field(None, min_length=1)
    """The system message that the aligned model reads in a chat that has none."""
    degraded: Literal["aligned"] | None = None
    """Who answers in NAME's place while the base engine is dead; unset: nobody (503)."""
    tools: Literal["auto", "refuse", "unseen"] | FormatName = "auto"
    """A chat that offers tools: answered by models that are told of them and call them in the
    aligned model's own format or in this one, or that don't see them; or an error."""
    reasoning: Literal["auto", "off"] | ThoughtName = "auto"
    """How the aligned model marks its thoughts: as its chat template does, or like this."""
    verify: Literal["off", "auto", "on"] = "off"
    """Whether the base model checks drafts of the aligned model, several tokens in one step."""
    verify_tokens: int = Field(8, ge=1, le=64)
    """Of a draft."""
    eager: bool = False
    """Whether the aligned model reads along while the base model writes, its next word ready."""
    fused: str | None = None
    """An engine that holds both models, by name."""
    mode: Literal["auto", "fused", "two_engines"] = "auto"
    """Of nudged answers, who writes which: that engine those that it can and lives for, it alone
    (others are refused), or the two."""

    @property
    def drafting(self) -> list[str]:
        """The settings that are on by which one model drafts for the other."""
        wanted = {
            "verify": self.verify == "on",
            "eager": self.eager,
            "fused": self.uses_fused,
        }
        return [setting for setting, is_on in wanted.items() if is_on]

    @property
    def uses_fused(self) -> bool:
        return self.fused is not None and self.mode != "two_engines"

    @property
    def engines(self) -> dict[EngineRole, str]:
        """The names of those that it has, by role."""
        named = ((role, getattr(self, role)) for role in get_args(EngineRole))
        return {role: name for role, name in named if name is not None}

    @property
    def own(self) -> PolicySpec:
        """The policy of a request that names none."""
        return POLICIES[self.nudging.policy]

    @property
    def allowed(self) -> dict[Policy, PolicySpec]:
        """The policies that a request may name, the model's own first."""
        names = dict.fromkeys((self.nudging.policy, *self.policies))
        return {name: POLICIES[name] for name in names}

    def lacks(self, spec: PolicySpec) -> str | None:
        """What a policy needs and this model doesn't name; None: it has all."""
        if self.engines.keys() >= set(spec.engines):
            return None
        return (
            f"the policy {spec.name!r} needs a third engine, that of the small model before it was "
            "aligned; name it in models.NAME.untuned"
        )

    @field_validator("stop")
    @classmethod
    def _stops(cls, stops: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        return stops

    @field_validator("base_stops")
    @classmethod
    def _headers(cls, headers: tuple[str, ...]) -> tuple[str, ...]:
        if not all(header.strip() for header in headers):
            raise ValueError("a header needs a letter, for instance '\\nUser:'")
        return headers

    @field_validator("verify", "reasoning", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """YAML takes a bare ``on`` or ``off`` for a truth value."""
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class ServerSettings(Frozen):
    """The HTTP server: where it listens, who may ask, how much, and how long."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    ssl_certfile: Path | None = None
    """PEM files for HTTPS; unset: plain HTTP."""
    ssl_keyfile: Path | None = None
    ssl_keyfile_password: SecretStr | None = None
    api_keys: tuple[SecretStr, ...] = ()
    """Keys that may ask, as they are or as ``sha256:`` and 64 hex digits. None: no key needed."""
    api_keys_file: Path | None = None
    """More of them, one a line; ``#`` begins a comment."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may read answers; ``*``: any. None: no page of another origin may."""
    max_body_bytes: ByteSize = ByteSize(4 * 2**20)
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Under what the contexts hold anyway."""
    max_n: int = Field(16, ge=1, le=128)
    """Answers that one request may ask for, over all of its prompts."""
    max_running: int = Field(64, ge=1)
    """Answers that are written at once; further requests wait in order of arrival."""
    max_waiting: int = Field(256, ge=0)
    """Answers that may wait for that; beyond, a request is told to come back (429)."""
    max_per_key: int | None = Field(None, ge=1)
    """Answers that one key may have running or waiting."""
    stored_responses: int = Field(1000, ge=0)
    """Responses that are kept in memory for those who refer to them; 0: none."""
    stored_bytes: ByteSize = ByteSize(64 * 2**20)
    """What they may take in all; those that nobody asked for the longest make room."""
    request_timeout_s: float = Field(600, gt=0)
    """From a request's arrival to its answer's end (504)."""
    drain_s: float = Field(30, ge=0)
    """How long running answers may take to finish after SIGTERM or Ctrl-C."""
    send_timeout_s: float = Field(30, gt=0)
    """How long a client may take in nothing of what waits for it; then its connection is closed."""
    keep_alive_s: float = Field(15, gt=0)
    """Seconds after which an idle stream sends a comment, so that proxies keep it open."""
    restart_limit: int = Field(5, ge=0)
    """Times running that a dead engine is started again before the server gives up (exit 1)."""
    restart_backoff_s: float = Field(1, gt=0)
    """Before the second attempt; doubled before each further one, up to a minute."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    otlp_endpoint: str | None = None
    """Where OpenTelemetry traces go; unset: OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere."""


class Settings(BaseSettings):
    """Everything. Made by `load`."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="NUDGE_",
        env_nested_delimiter="__",
        case_sensitive=True,  # of the file's keys; the environment is read in lower case
    )

    engines: dict[_Name, AnyEngine] = Field(min_length=1)
    models: dict[_Name, ModelSettings] = Field(min_length=1)
    server: ServerSettings = ServerSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        for name, model in self.models.items():
            for role, engine in model.engines.items():
                if engine not in self.engines:
                    known = ", ".join(self.engines)
                    raise ValueError(
                        f"models.{name}.{role}: no engine is named {engine!r} (there are: {known})"
                        f"{did_you_mean(engine, self.engines)}"
                    )
            self._check_fused(name, model)
            for spec in model.allowed.values():
                if lacking := model.lacks(spec):
                    raise ValueError(f"models.{name}.untuned: {lacking.replace('NAME', name)}")
            for setting in model.drafting:
                if not model.own.drafts:
                    raise ValueError(
                        f"models.{name}.{setting}: it has no effect on the policy "
                        f"{model.own.name!r}; leave it off"
                    )
        for backend, engines in backends.grouped(self.engines):
            for message in backend.conflicts(engines):
                raise ValueError(message)
        return self

    def _check_fused(self, name: str, model: ModelSettings) -> None:
        """Raises `ValueError`."""
        if model.fused is None:
            if model.mode == "fused":
                raise ValueError(
                    f"models.{name}.mode: 'fused' needs an engine with both models; name it in "
                    f"models.{name}.fused"
                )
            return
        where, engines = f"models.{name}.fused", self.engines
        two = [each for each, engine in engines.items() if engine.second is not None]
        if model.fused not in two:
            there = f"there are: {', '.join(two)}" if two else "none has a drafter"
            raise ValueError(
                f"{where}: {model.fused!r} names no engine with two models ({there})"
                f"{did_you_mean(model.fused, two)}"
            )
        found = engines[model.fused]
        for held, role in ((found.model, model.base), (found.second, model.aligned)):
            if held != engines[role].model:
                raise ValueError(
                    f"{where}: engine {model.fused!r} holds {held}, and engine {role!r} "
                    f"{engines[role].model}: both must have the same models"
                )
