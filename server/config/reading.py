"""Where settings come from: a flag, else the environment, else the file, else the default.

The environment's names are ``NUDGE_`` and the path of keys, nested with ``__``:
``NUDGE_SERVER__PORT=9000``. Does not know: which settings there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
)

from server.config.mistakes import told
from server.config.settings import Settings
from server.core import ConfigError
from server.engines import backends

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


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
    keys = _read(path)
    environment = {name: value for name, value in os.environ.items() if name.startswith("NUDGE_")}
    _check(environment)

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

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return FromFile(**_nested(given))
    except ValidationError as error:
        raise ConfigError(told(error.errors(), Settings, path, environment, given)) from error


def _read(path: Path) -> dict[str, Any]:
    """The file's keys, with the paths in it made to be looked up beside it."""
    try:
        content = yaml.load(path.read_text("utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a YAML mapping with engines: and models:")
    for engine in _mappings(content.get("engines")):
        row = backends.BACKENDS.get(str(engine.get("backend", backends.DEFAULT)))
        for key in row.settings.folders if row else ():
            if isinstance(engine.get(key), str):
                engine[key] = _beside(path, engine[key])
        for key in row.settings.files if row else ():
            if isinstance(engine.get(key), str):
                engine[key] = str(path.parent / engine[key])
    server = content.get("server")
    for key in ("api_keys_file", "ssl_certfile", "ssl_keyfile"):
        if isinstance(server, dict) and isinstance(server.get(key), str):
            server[key] = str(path.parent / server[key])
    return {str(key): value for key, value in content.items()}


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML's own takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    first = f"first in line {lines[key.value]}"
                    raise yaml.YAMLError(f"line {line}: {key.value!r} is there twice ({first})")
                lines[key.value] = line
        return node


def _check(environment: Mapping[str, str]) -> None:
    """Raises `ConfigError` for a variable that belongs to no section, or should hold JSON."""
    for name, value in environment.items():
        section = name.removeprefix("NUDGE_").lower().split("__")
        if section[1:] and section[0] not in Settings.model_fields:
            known = ", ".join(f"NUDGE_{field.upper()}__…" for field in Settings.model_fields)
            raise ConfigError(f"{name} in the environment sets nothing (there are: {known})")
        alone = EnvSettingsSource(Settings, case_sensitive=False)
        alone.env_vars = {name.lower(): value}
        try:
            alone()
        except SettingsError as error:
            what = "a list or a mapping, written as JSON"
            raise ConfigError(f"{name} in the environment must be {what}") from error


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
        *parents, last = name.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
