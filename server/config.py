"""Settings: a YAML file, the environment and the command line, as one frozen value.

Precedence: flag > environment (``NUDGE_…``, nested with ``__``: ``NUDGE_SERVER__PORT=9000``) >
file > default. Unknown keys are errors. Knows: what can be set and which settings can't work
together. Does not know: what any backend sets (its row says that), HTTP.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

import yaml
from pydantic import (
    ByteSize,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from server.core import ConfigError, EndCheck, NudgingConfig, SamplingParams
from server.engines import backends
from server.engines.backend import EngineSettings, Frozen
from server.engines.backends import BACKENDS
from server.policies import DEFAULT, POLICIES, EngineRole, Policy, PolicySpec

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"

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


class NudgingSettings(Frozen):
    """Defaults of the policies for one served model; a request's ``nudging`` overrides them."""

    gamma: float = Field(0.4, ge=0, allow_inf_nan=False)
    entropy: float = Field(2.0, gt=0, allow_inf_nan=False)
    policy: Policy = DEFAULT
    start: Literal["base", "aligned"] = "aligned"
    end_lookahead: int = Field(0, ge=0, le=1024)
    end_check: EndCheck = "newline"
    max_rounds: int | None = Field(None, ge=1)

    def config(self) -> NudgingConfig:
        return NudgingConfig(**self.model_dump())


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
    base_prompt: str | None = None
    """Jinja template of the base model's prompt, or ``chat``; unset: Question/Answer."""
    base_stops: tuple[str, ...] = ()
    """Headers of turns at which the base model gives way, besides those of its prompt."""
    chat_template: str | None = None
    """Instead of the aligned model's own chat template."""
    degraded: Literal["aligned"] | None = None
    """Who answers in NAME's place while the base engine is dead; unset: nobody (503)."""
    tools: Literal["refuse", "unseen"] = "refuse"
    """A chat that offers tools: an error, or answered by models that don't see them."""
    verify: Literal["off", "auto", "on"] = "off"
    """Whether the base model checks drafts of the aligned model, several tokens in one step."""
    verify_tokens: int = Field(8, ge=1, le=64)
    """Of a draft."""
    eager: bool = False
    """Whether the aligned model reads along while the base model writes, its next word ready."""

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

    @field_validator("base_stops")
    @classmethod
    def _headers(cls, headers: tuple[str, ...]) -> tuple[str, ...]:
        if not all(header.strip() for header in headers):
            raise ValueError("a header needs a letter, for instance '\\nUser:'")
        return headers

    @field_validator("verify", mode="before")
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
        case_sensitive=True,  # of the file's keys; `load` reads the environment in lower case
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
                    )
            for spec in model.allowed.values():
                if lacking := model.lacks(spec):
                    raise ValueError(f"models.{name}.untuned: {lacking.replace('NAME', name)}")
            for setting, is_on in (("verify", model.verify == "on"), ("eager", model.eager)):
                if is_on and not model.own.drafts:
                    raise ValueError(
                        f"models.{name}.{setting}: it has no effect on the policy "
                        f"{model.own.name!r}; leave it off"
                    )
        for backend, engines in backends.grouped(self.engines):
            for message in backend.conflicts(engines):
                raise ValueError(message)
        return self


def load(path: Path, **flags: Any) -> Settings:
    """Read a configuration.

    Args:
        path: the YAML file; relative model folders, and the server's keys and certificate, are
            looked up beside it.
        flags: overrides from the command line, nested by ``__`` as in the environment; None
            means not given.

    Raises:
        ConfigError: with everything that is wrong, one line each.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a YAML mapping with engines: and models:")
    for engine in _mappings(content.get("engines")):
        for key in ("model", "tokenizer"):
            if isinstance(engine.get(key), str):
                engine[key] = _beside(path, engine[key])
    server = content.get("server")
    for key in ("api_keys_file", "ssl_certfile", "ssl_keyfile"):
        if isinstance(server, dict) and isinstance(server.get(key), str):
            server[key] = str(path.parent / server[key])
    keys = {str(key): value for key, value in content.items()}

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            environment = EnvSettingsSource(settings_cls, case_sensitive=False)
            return init_settings, environment, InitSettingsSource(settings_cls, keys)

    for name in os.environ:
        section = name.removeprefix("NUDGE_").lower().split("__")
        if name.startswith("NUDGE_") and section[1:] and section[0] not in Settings.model_fields:
            known = ", ".join(f"NUDGE_{field.upper()}__…" for field in Settings.model_fields)
            raise ConfigError(f"{name} in the environment sets nothing (there are: {known})")
    try:
        return FromFile(**_nested(flags))
    except SettingsError as error:  # an environment variable that should hold JSON
        raise ConfigError(str(error)) from error
    except ValidationError as error:
        raise ConfigError("\n  ".join((f"{path}:", *map(_line, error.errors())))) from error


def _line(error: ErrorDetails) -> str:
    """Where something is wrong, and what."""
    where = [step for step in error["loc"] if step != "[key]"]
    text = re.sub(r"^Value error, ", "", error["msg"])
    if error["type"].startswith("union_tag"):
        where.append("backend")
        text = f"Input should be {' or '.join(map(repr, BACKENDS))}"
    elif where[:1] == ["engines"]:
        del where[2:3]  # the backend, by which the settings were told apart
    return ": ".join(filter(None, (".".join(map(str, where)), text)))


def _mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield from (each for each in value.values() if isinstance(each, dict))


def _beside(config: Path, model: str) -> str:
    """An absolute path where the name is a folder or says that it means one."""
    local = (config.parent / model).resolve()
    means_path = model.startswith((".", "/"))
    return str(local) if local.is_dir() or means_path else model


def _nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flags.items():
        if value is None:
            continue
        *parents, last = name.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
