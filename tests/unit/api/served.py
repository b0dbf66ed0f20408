"""The application over a configuration's engines, without a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from server import config
from server.api.app import create_app
from server.serving.registry import Registry


@asynccontextmanager
async def application(given: dict[str, Any]) -> AsyncIterator[FastAPI]:
    """``given``: as a configuration's file has it. Its engines are ready."""
    registry = Registry(config.Settings.model_validate(given))
    await registry.start()
    yield create_app(registry, start=asyncio.Event().wait)
    await registry.aclose()
