"""An engine that runs on servers elsewhere.

Knows: what an engine is, and how its servers are found to be there. Does not know: turns, how a
server is asked, the policy.
"""

from __future__ import annotations

import contextlib

import httpx

from server.core import EngineUnavailable, TokenIds
from server.engines.base import EngineInfo, Replica
from server.engines.remote.replicas import Replicas
from server.engines.remote.session import Core, RemoteSession


class RemoteEngine:
    """Made by `server.engines.remote.starting`."""

    def __init__(self, core: Core, http: httpx.AsyncClient, session: str | None = None) -> None:
        """``session``: of the clients whose answers are written here; None: they don't say."""
        self._core = core
        self._http = http
        self._session = session

    def within(self, session: str) -> RemoteEngine:
        return RemoteEngine(self._core, self._http, session)

    @property
    def info(self) -> EngineInfo:
        return self._core.info

    @property
    def replicas(self) -> Replicas:
        return self._core.replicas

    @property
    def alive(self) -> bool:
        return bool(self.replicas.up)

    @property
    def running(self) -> int:
        return self._core.running

    @property
    def servers(self) -> dict[str, Replica]:
        return {
            each.name: Replica(each.found is not None, each.sessions, each.failed)
            for each in self.replicas.all
        }

    def open(self, prompt: TokenIds) -> RemoteSession:
        return RemoteSession(self._core, prompt, self._session)

    async def check_health(self) -> None:
        if not self.alive:
            raise EngineUnavailable(self.replicas.why())

    async def aclose(self) -> None:
        await self.replicas.aclose()
        with contextlib.suppress(RuntimeError):  # closed already
            await self._http.aclose()
