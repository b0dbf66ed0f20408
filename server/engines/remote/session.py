"""A session on servers elsewhere: a list of ids, and whose turn is one request over them.

The ids are all there is of it, so a turn that fails on one server goes on on another from where it
was: with the same text, where it is greedy. Knows: when a turn is asked for again. Does not know:
HTTP, which server is chosen, when a turn ends.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from server.core import EngineUnavailable, InvalidRequest, TokenIds
from server.engines.base import EngineInfo, Token, TurnEnd, TurnParams
from server.engines.remote import generate, protocol
from server.engines.remote.client import Failed
from server.engines.remote.conversations import Conversations, Place
from server.engines.remote.probe import Found
from server.engines.remote.protocol import Asked, Chunk, Malformed
from server.engines.remote.replicas import Replica, Replicas
from server.engines.turn import Turn

Answer = TypeVar("Answer")

PAUSE_S = 0.1
"""Before the only server is asked again, doubled each time."""


class Core:
    """What the sessions of one engine share. model: as the servers name it. retries: of a turn."""

    def __init__(self, info: EngineInfo, replicas: Replicas, model: str, retries: int) -> None:
        self.info = info
        self.replicas = replicas
        self.model = model
        self.retries = retries
        self.running = 0
        self.conversations = Conversations()


class RemoteSession:
    """See `server.engines.base.Session`."""

    def __init__(self, core: Core, prompt: TokenIds, named: str | None = None) -> None:
        """``named``: what it belongs to, as a client says; None: its prompt tells."""
        self._core = core
        self._named = named
        self._ids = list(prompt)
        self._prompt = list(prompt)
        self._key = uuid.uuid4().hex  # of no other session of any orchestrator
        before = core.conversations.take(prompt, named)
        self._liked = None if before is None else before.replica
        self._together = named or (self._key if before is None else before.key)
        self._turn: AsyncGenerator[Token | TurnEnd] | None = None
        self._at: Replica | None = None  # whose cache has what was read
        self._unread = len(prompt)
        self._failed = 0  # requests of the turn
        self._busy = False
        self.steps = 0
        self.prefilled = 0
        self.cached = 0  # servers don't tell

    @property
    def length(self) -> int:
        return len(self._ids)

    def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        self._turn = self._generate(params)
        return self._turn

    async def _generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        core, info = self._core, self._core.info
        turn = Turn(params, info.tokenizer, info.stop_ids, info.context_length - self.length)
        self._begin()
        try:
            while turn.end is None:
                replica, found = await self._place()
                stream = self._asked(turn, replica, found)
                try:
                    async with aclosing(stream) as chunks:
                        async for chunk in chunks:
                            self._heard(chunk)
                            for token in chunk.tokens:
                                if turn.offer(token):
                                    self._ids.append(token.id)
                                    yield token
                                if turn.end is not None:
                                    break
                            else:
                                if chunk.finish == "stop":
                                    _end(turn, chunk.stopped, found.plugin)
                            if turn.end is not None and chunk.finish is None:
                                break  # on which the server stops too
                    core.replicas.went_well(replica)
                except Failed as failed:
                    if turn.end is None:  # else only what comes behind it is missing
                        self._again(replica, failed)
            yield turn.end
        finally:
            self._finish()

    def _asked(self, turn: Turn, replica: Replica, found: Found) -> AsyncGenerator[Chunk]:
        core, rest = self._core, turn.rest()
        asked = Asked(
            rest,
            core.info,
            self._ids.copy(),
            core.model,
            found.plugin,
            len(self._prompt),
            self._key,
            again=len(turn.taken),
        )
        whole = found.generate and rest.reported <= generate.MOST
        way = generate.GENERATE if whole else protocol.COMPLETIONS
        return replica.client.stream(way, asked, self._together)

    def _heard(self, chunk: Chunk) -> None:
        self.steps += chunk.positions
        self.prefilled += self._unread
        self._unread = 0

    async def score(self, top: int) -> list[Token]:
        ids, core = self._ids.copy(), self._core
        body = protocol.look(core.model, ids, prompt_logprobs=top)

        async def ask(replica: Replica) -> list[Token]:
            said = await replica.client.complete(body, session=self._together)
            try:
                return protocol.scores(said, ids, top)
            except Malformed as error:
                raise Failed("failed", f"{replica.name}: {error}") from error

        found = await self._once(ask)
        self.steps += 1
        self.prefilled += len(ids)
        self._unread = 0
        return found

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        raise NotImplementedError("its engine lacks the ability")  # the contract, 8

    async def _once(self, ask: Callable[[Replica], Awaitable[Answer]]) -> Answer:
        self._begin()
        try:
            while True:
                replica, _ = await self._place()
                try:
                    answer = await ask(replica)
                except Failed as failed:
                    self._again(replica, failed)
                    continue
                self._core.replicas.went_well(replica)
                return answer
        finally:
            self._finish()

    # -- where it is asked -------------------------------------------------------------------

    def _begin(self) -> None:
        if self._busy:
            raise RuntimeError("a turn of this session runs already")
        self._busy = True
        self._core.running += 1
        self._failed = 0

    def _finish(self) -> None:
        if self._busy:
            self._busy = False
            self._core.running -= 1

    async def _place(self) -> tuple[Replica, Found]:
        """The server of the next request, and what it is, which may be forgotten meanwhile."""
        at = self._at
        if self._failed and len(self._core.replicas.up) == 1:
            await asyncio.sleep(PAUSE_S * 2 ** (self._failed - 1))
        replicas = self._core.replicas
        replica, found = await replicas.take(at, at if self._failed else None, self._liked)
        if replica is not at:
            self._leave()
            self._at = replica
            replica.sessions += 1
            self._unread = len(self._ids)
        return replica, found

    def _leave(self) -> None:
        if self._at is not None:
            self._at.sessions -= 1
            self._at = None

    def _again(self, replica: Replica, failed: Failed) -> None:
        """A request failed: whether it is made again. Raises what ends the turn."""
        core = self._core
        if failed.kind == "refused":
            raise InvalidRequest(f"engine {core.info.name!r} refused: {failed}") from failed
        core.replicas.went_wrong(replica, failed)
        self._failed += 1
        if self._failed > core.retries or not core.replicas.may_retry():
            raise EngineUnavailable(f"engine {core.info.name!r} failed: {failed}") from failed

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        if drop:
            del self._ids[-drop:]
        self._ids += ids
        self._unread += len(ids)

    async def aclose(self) -> None:
        try:
            if self._turn is not None:
                await self._turn.aclose()
        finally:
            if self._at is not None:
                place = Place(self._at, self._together)
                self._core.conversations.keep(self._prompt, place, self._named)
            self._leave()


def _end(turn: Turn, last: Token | None, plugin: bool) -> None:
    """The server ended the turn: at a token that ends the text, or where its processor forced it.

    Where no rule says so, it is an end that only the server knows of.
    """
    if last is None:
        turn.end = TurnEnd("stop")
        return
    known = last.id in (*turn.stop_ids, *turn.params.ends, *turn.params.stop_token_ids)
    if known and plugin:
        turn.offer_stopped(last)
    else:
        turn.offer(last, ended=True)
        if turn.end == TurnEnd("word"):
            turn.end = TurnEnd("stop", last)
