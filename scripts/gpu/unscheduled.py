"""A plugin of pytest: all vLLM engines of the tests without asynchronous scheduling.

An environment's settings would have to name every engine of every test's configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.engines.vllm import engine

_made = engine._engine_args


def _unscheduled(name: str, args: Mapping[str, Any], device: str | None) -> Any:
    return _made(name, {**args, "async_scheduling": False}, device)


engine._engine_args = _unscheduled
