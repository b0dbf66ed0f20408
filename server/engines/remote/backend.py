"""Servers elsewhere as a backend: the settings of such an engine, and the way to what starts it.

Knows: which settings there are, and what must not be among them. Does not know: HTTP, what is
asked of a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from server.core import ConfigError
from server.engines.backend import Backend, EngineSettings, later


class RemoteSettings(EngineSettings):
    """An engine that runs on one server or on several alike, asked over HTTP.

    ``model``: the name that they serve it under.
    """

    folders: ClassVar[tuple[str, ...]] = ("tokenizer",)
    files: ClassVar[tuple[str, ...]] = ("api_key_file", "ca_file")

    backend: Literal["remote"] = "remote"
    url: str | None = None
    """Of the server, with or without ``/v1``."""
    urls: tuple[str, ...] = ()
    """Of several with the same model, instead."""
    tokenizer: str | None = None
    """A folder, or a name at the hub; unset: what the server says its model is (``root``)."""
    revision: str | None = None
    trust_remote_code: bool = False
    max_model_len: int | None = Field(None, ge=16)
    """Unset: the server's own. A larger one than that is an error."""
    api_key: SecretStr | None = None
    api_key_file: str | None = None
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    session_header: str = "X-Session-ID"
    """Holds the same for all turns of an answer, for a router to keep them together."""
    data_parallel: int = Field(1, ge=1)
    """How many engines each server is (its ``--data-parallel-size``): each has a cache of its own,
    and is asked as a server of its own."""
    api: Literal["auto", "completions", "generate"] = "auto"
    """By which path a turn is asked for: ``/v1/completions``, or ``/inference/v1/generate``, which
    ``auto`` takes where it is there."""
    tls_verify: bool = True
    ca_file: str | None = None
    stops: Literal["auto", "plugin", "stream"] = "auto"
    """Who ends a turn: the server by our stop processor, or this side, which reads the stream as
    long as it is wanted. ``auto``: the processor where it is there."""
    start_timeout_s: float = Field(1800, gt=0)
    connect_timeout_s: float = Field(5, gt=0)
    silence_s: float = Field(30, gt=0)
    """How long a server may say nothing, to any answer, while one waits for it; longer with prompts
    to read (`server.engines.silence`)."""
    health_interval_s: float = Field(5, gt=0)
    retries: int = Field(3, ge=0)
    """How often a turn may be asked for again, where it failed."""

    @property
    def all_urls(self) -> tuple[str, ...]:
        return self.urls or (self.url or "",)

    def all_headers(self) -> dict[str, str]:
        """With the key, as they are sent. Raises `ConfigError`."""
        headers = {name: value.get_secret_value() for name, value in self.headers.items()}
        key = None if self.api_key is None else self.api_key.get_secret_value()
        if self.api_key_file is not None:
            try:
                key = Path(self.api_key_file).read_text("utf-8").strip()
            except OSError as error:
                raise ConfigError(
                    f"api_key_file {self.api_key_file} can't be read: {error.strerror}"
                ) from error
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return headers

    @field_validator("url", "urls", mode="after")
    @classmethod
    def _root(cls, given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(given, tuple):
            return tuple(map(_root, given))
        return None if given is None else _root(given)

    @model_validator(mode="after")
    def _fits(self) -> RemoteSettings:
        if (self.url is None) == (not self.urls):
            raise ValueError("set url, or urls for several servers with the same model")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("urls: one is there twice")
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("set api_key or api_key_file, not both")
        return self


def _root(url: str) -> str:
    """Without ``/v1`` at its end, which every path has."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a url begins with http:// or https:// and a host")
    if parts.username or parts.password:
        raise ValueError("a url is logged: put a key into api_key or headers")
    if parts.query or parts.fragment:
        raise ValueError("a url has no query here")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _problems(engines: Mapping[str, RemoteSettings]) -> Iterator[str]:
    for name, engine in engines.items():
        try:
            engine.all_headers()
        except ConfigError as error:
            yield f"engines.{name}: {error}"


REMOTE = Backend(
    RemoteSettings,
    start=later(f"{__package__}.starting", "start"),
    examine=later(f"{__package__}.examine", "examine"),
    hardware=lambda: "servers elsewhere",
    problems=_problems,
)
