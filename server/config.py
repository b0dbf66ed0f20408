"""Settings: a YAML file, the environment and the command line, as one frozen value.

Precedence: flag > environment (``NUDGE_…``, nested with ``__``: ``NUDGE_SERVER__PORT=9000``) >
file > default. Unknown keys are errors. Knows: what can be set and which settings can't work
together. Does not know: engines, HTTP.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from server.core import ConfigError, NudgingConfig, SamplingParams
from server.policies import DEFAULT, POLICIES, Policy, PolicySpec

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"

VLLM_DEFAULT_MEMORY_SHARE = 0.92
"""vLLM's ``gpu_memory_utilization`` where none is set: nearly the whole GPU, for one engine."""

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s:@]+$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


_NOT_VLLMS = frozenset(
    {"backend", "device", "cpu_threads", "start_timeout_s", "silence_s", "resumable", "args"}
)
"""Settings of an engine that are no argument of vLLM's, or that hold such."""


class EngineSettings(_Frozen):
    """One model on one engine. All but `_NOT_VLLMS` are vLLM's engine arguments; any other of
    them goes under ``args``."""

    backend: Literal["vllm", "scripted"] = "vllm"
    model: str
    """A folder (relative to the config file) or a Hugging Face name."""
    device: str | None = Field(None, coerce_numbers_to_str=True)
    """GPU index, or several ("0,1") for tensor parallelism; "cpu"; unset: vLLM's choice."""
    cpu_threads: int | None = Field(None, ge=1)
    """On the CPU; unset: the cores, shared equally among the engines."""
    start_timeout_s: float = Field(1800, gt=0)
    silence_s: float = Field(30, gt=0)
    """How long the engine may write nothing, for any of its answers, while it has something to
    write; longer with prompts to read (`server.engines.silence`). Then it is dead (503), and
    started again."""
    resumable: bool = True
    """Whether what an answer's turns have read stays in the engine between them."""
    tokenizer: str | None = None
    revision: str | None = None
    dtype: str | None = None
    max_model_len: int | None = Field(None, ge=16)
    tensor_parallel_size: int | None = Field(None, ge=1)
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    kv_cache_memory_bytes: ByteSize | None = None
    quantization: str | None = None
    trust_remote_code: bool | None = None
    enforce_eager: bool | None = None
    args: dict[str, Any] = {}

    def engine_args(self) -> dict[str, Any]:
        """What goes to ``AsyncEngineArgs``."""
        own = self.model_dump(
            exclude=set(_NOT_VLLMS),
            exclude_none=True,
        )
        if "kv_cache_memory_bytes" in own:
            own["kv_cache_memory_bytes"] = int(own["kv_cache_memory_bytes"])
        return {**own, **self.args}

    def gpus(self) -> list[str]:
        """The GPUs it runs on, where it runs on any."""
        if self.device is not None:
            return [device.strip() for device in self.device.split(",")]
        return [str(index) for index in range(self._gpus_needed())]

    def _gpus_needed(self) -> int:
        parallel = (self.args.get(f"{kind}_parallel_size", 1) for kind in ("pipeline", "data"))
        return math.prod((self.tensor_parallel_size or 1, *(int(size) for size in parallel)))

    @model_validator(mode="after")
    def _fits(self) -> EngineSettings:
        twice = self.args.keys() & (type(self).model_fields.keys() - {"args"})
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: set it beside args, not inside")
        if self.device not in (None, "cpu") and len(self.gpus()) != self._gpus_needed():
            raise ValueError(
                f"device names {len(self.gpus())} GPUs ({self.device}), and "
                f"tensor_parallel_size asks for {self._gpus_needed()}"
            )
        return self


class NudgingSettings(_Frozen):
    """Defaults of the policies for one served model; a request's ``nudging`` overrides them."""

    gamma: float = Field(0.4, ge=0, allow_inf_nan=False)
    entropy: float = Field(2.0, gt=0, allow_inf_nan=False)
    policy: Policy = DEFAULT
    start: Literal["base", "aligned"] = "aligned"
    end_lookahead: int = Field(0, ge=0, le=1024)
    max_rounds: int | None = Field(None, ge=1)

    def config(self) -> NudgingConfig:
        return NudgingConfig(**self.model_dump())


class SamplingSettings(_Frozen):
    """What a request that doesn't say gets. Unset: OpenAI's defaults (temperature 1, top_p 1)."""

    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)

    def params(self) -> SamplingParams:
        return SamplingParams(**self.model_dump())


class ModelSettings(_Frozen):
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
    """Jinja template of the base model's prompt; unset: Question/Answer."""
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
        if all(getattr(self, role) is not None for role in spec.engines):
            return None
        return (
            f"the policy {spec.name!r} needs a third engine, that of the small model before it was "
            "aligned; name it in models.NAME.untuned"
        )

    @field_validator("verify", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        """YAML takes a bare ``on`` or ``off`` for a truth value."""
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


class ServerSettings(_Frozen):
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

    engines: dict[_Name, EngineSettings] = Field(min_length=1)
    models: dict[_Name, ModelSettings] = Field(min_length=1)
    server: ServerSettings = ServerSettings()

    def threads(self, engine: str) -> int:
        """How many an engine on the CPU computes with. Engines that together have more threads
        than there are cores wait for threads that aren't running."""
        sharing = sum(each.backend == "vllm" for each in self.engines.values())
        own = max(1, len(os.sched_getaffinity(0)) // max(1, sharing))
        return self.engines[engine].cpu_threads or own

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        for name, model in self.models.items():
            for role in ("base", "aligned", "untuned"):
                engine = getattr(model, role)
                if engine is not None and engine not in self.engines:
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
        for message in memory_share_problems(self.engines):
            raise ValueError(message)
        return self


def memory_share_problems(engines: Mapping[str, EngineSettings]) -> Iterator[str]:
    """Engines that together ask for more than the whole of one GPU.

    An engine that sets ``kv_cache_memory_bytes`` is sized by that and has no share.
    """
    shares: dict[str, dict[str, float]] = {}
    for name, engine in engines.items():
        if engine.backend != "vllm" or engine.device == "cpu" or engine.kv_cache_memory_bytes:
            continue
        share = engine.gpu_memory_utilization or VLLM_DEFAULT_MEMORY_SHARE
        for gpu in engine.gpus():
            shares.setdefault(gpu, {})[name] = share
    for device, wanted in shares.items():
        if sum(wanted.values()) > 1.0 + 1e-9:
            asked = " + ".join(f"{name} {share:g}" for name, share in wanted.items())
            yield (
                f"engines on GPU {device} ask for more than all of its memory: {asked} = "
                f"{sum(wanted.values()):g}. Set gpu_memory_utilization of each so that they sum "
                "to 0.95 at most (in proportion to the models' sizes), or give them devices of "
                f"their own. (Unset, an engine takes {VLLM_DEFAULT_MEMORY_SHARE:g}.)"
            )


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
        lines = []
        for each in error.errors():
            where = ".".join(str(step) for step in each["loc"] if step != "[key]")
            text = re.sub(r"^Value error, ", "", each["msg"])
            lines.append(f"{where}: {text}" if where else text)
        raise ConfigError(f"{path}:\n  " + "\n  ".join(lines)) from error


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
