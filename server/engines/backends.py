"""The table of backends: what can run a model.

Knows: which there are. Does not know: how any of them works, what else a configuration says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from server.engines.backend import Backend, EngineSettings
from server.engines.remote.backend import REMOTE
from server.engines.scripted import SCRIPTED
from server.engines.vllm.backend import VLLM

_ROWS: tuple[Backend[Any], ...] = (VLLM, REMOTE, SCRIPTED)

BACKENDS: dict[str, Backend[Any]] = {
    row.settings.model_fields["backend"].default: row for row in _ROWS
}

DEFAULT: str = next(iter(BACKENDS))
"""Of an engine that names none."""


def of(engine: EngineSettings) -> Backend[Any]:
    return BACKENDS[engine.backend]


def grouped(
    engines: Mapping[str, EngineSettings],
) -> Iterator[tuple[Backend[Any], dict[str, Any]]]:
    """The backends that are used, and the engines of each, in the order of the configuration."""
    found: dict[str, dict[str, EngineSettings]] = {}
    for name, engine in engines.items():
        found.setdefault(engine.backend, {})[name] = engine
    for backend, its in found.items():
        yield BACKENDS[backend], its
