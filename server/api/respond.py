"""How answers are sent: several at once, whole or as a stream, to a client that may leave.

Knows: writers, renderers, and that a client who leaves frees the engines. Does not know: which
route asked, a rule of the policy, OpenAI's shapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from server.api import sse
from server.api.admission import Ticket
from server.api.errors import as_api_error
from server.api.limits import check_prompts, take_ticket
from server.api.openai.render import Json, Renderer
from server.api.openai.requests import Generation
from server.api.watch import Watch, watching
from server.core import AnswerRequest, Finished, Piece, Usage
from server.decoding.stream import Channel, Event, Matches, Writer, answer, weight

Result = TypeVar("Result")
Item = tuple[int, Event, Usage | None]
"""An event of one of the answers, and what that has cost so far, where it is asked for."""

AT_ONCE = 64
"""Events that are sent in one piece at most."""


@dataclass(frozen=True)
class Answers:
    """What one request asks for: for each prompt, its independent answers.

    matches: see `server.decoding.stream.stream`.
    echo: for each prompt, the text that goes in front of its answers.
    """

    body: Generation
    request: AnswerRequest
    writers: Sequence[Sequence[Writer]]
    matches: Matches
    echo: Sequence[str] | None = None

    @property
    def all(self) -> list[Writer]:
        """In the order of their ``index``."""
        return [writer for writers in self.writers for writer in writers]

    def echoed(self, index: int) -> str:
        return "" if self.echo is None else self.echo[index // len(self.writers[0])]

    def usage(self) -> Usage:
        """What the whole request cost; each prompt is counted once."""
        return Usage.total([[writer.usage() for writer in writers] for writers in self.writers])


async def respond(request: Request, answers: Answers, kind: type[Renderer]) -> Response:
    body = answers.body
    settings = request.app.state.registry.settings.server
    watch = watching(request)
    watch.answering(
        request.app.state.registry.resolve(body.model),
        answers.request,
        answers.writers,
        stream=bool(body.stream),
    )
    check_prompts(settings, body, answers.writers)
    renderer = kind(
        body.model,
        trace=body.trace,
        include_usage=body.include_usage,
        top=answers.request.top_logprobs,
    )
    watch.named(renderer.id)
    writing = Writing(answers, take_ticket(request, len(answers.all), body.priority or 0), watch)
    response: Response | None = None
    try:
        if not body.stream:
            whole = await _unless_left(request, _whole(writing, answers, renderer))
            response = Response(status_code=499) if whole is None else JSONResponse(whole)
        # What fails before anything was written has its status.
        elif await _unless_left(request, writing.begun()) is None:
            response = Response(status_code=499)  # nobody is there to read it
        else:
            stream = _Stream(writing, answers, renderer, watch)
            response = sse.EventStream(stream, keep_alive_s=settings.keep_alive_s)
        return response
    finally:
        if not isinstance(response, sse.EventStream):
            await writing.aclose()


class Writing:
    """The answers of one request while they are written, all in one task. It owns their time and
    their place: when they are written, or their time is up, the place is free, whatever becomes
    of what they wrote."""

    def __init__(self, answers: Answers, ticket: Ticket, watch: Watch) -> None:
        self._channel: Channel[Item] = Channel()
        self.take = self._channel.take
        self._task = asyncio.create_task(self._write(answers, ticket, watch))
        self._task.add_done_callback(lambda _: ticket.leave())
        self._channel.close_after(self._task)

    async def begun(self) -> bool:
        """Returns when something was written. Raises what failed before that."""
        await self._channel.begun()
        return True

    async def _write(self, answers: Answers, ticket: Ticket, watch: Watch) -> None:
        running = answers.body.continuous_usage
        async with ticket.limit():
            await ticket.turn()
            watch.begun()
            try:
                async with asyncio.TaskGroup() as group:
                    for index, writer in enumerate(answers.all):
                        sink = _Sink(self._channel, index, watch, writer if running else None)
                        group.create_task(answer(writer, answers.request, sink, answers.matches))
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None  # the others were cancelled for it

    async def aclose(self) -> None:
        """Stop, if it isn't done; returns when the engines are free."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class _Sink:
    """Where one of the answers goes."""

    def __init__(
        self, channel: Channel[Item], index: int, watch: Watch, counted: Writer | None
    ) -> None:
        self._channel = channel
        self._index = index
        self._watch = watch
        self._counted = counted
        self.room = channel.room

    def put(self, event: Event) -> None:
        self._watch.event(self._index, event)
        usage = None if self._counted is None else self._counted.usage()
        self._channel.put((self._index, event, usage), weight(event))

    @property
    def full(self) -> bool:
        return self._channel.full


async def _whole(writing: Writing, answers: Answers, renderer: Renderer) -> Json:
    pieces: list[list[Piece]] = [[] for _ in answers.all]
    ends: dict[int, Finished] = {}
    while items := await writing.take():
        for index, event, _ in items:
            if isinstance(event, Finished):
                ends[index] = event
            else:
                pieces[index].append(event)
    choices = [
        renderer.choice(index, written, ends[index], answers.echoed(index))
        for index, written in enumerate(pieces)
    ]
    return renderer.whole(choices, answers.usage())


class _Stream:
    """A stream's events as bytes: chunks, or one lone error where an answer failed, then DONE."""

    def __init__(
        self, writing: Writing, answers: Answers, renderer: Renderer, watch: Watch
    ) -> None:
        self._writing = writing
        self._answers = answers
        self._renderer = renderer
        self._watch = watch
        self._items: list[Item] = []
        self._first = True
        self._over = False
        self.aclose = writing.aclose

    async def next(self) -> bytes:
        """What there is to send now; nothing where that was all."""
        if self._over:
            return b""
        try:
            if not self._items:
                self._items = await self._writing.take()
            items, self._items = self._items[:AT_ONCE], self._items[AT_ONCE:]
            chunks = [*self._beginning(items), *self._chunks(items)]
            if items:
                return b"".join(map(sse.event, chunks))
            chunks += self._renderer.usage_chunks(self._answers.usage())
        except Exception as error:
            # The status is out already, so the stream itself must say it.
            failure = as_api_error(error)
            self._watch.failed(failure.body["error"]["code"] or str(failure.status))
            chunks = [failure.body]
        self._over = True
        return b"".join((*map(sse.event, chunks), sse.DONE))

    def _beginning(self, items: Sequence[Item]) -> Iterator[Json]:
        if self._first:
            self._first = False
            for index in range(len(self._answers.all)):
                usage = next((usage for number, _, usage in items if number == index), Usage())
                shown = usage if self._answers.body.continuous_usage else None
                yield from self._renderer.first_chunks(index, self._answers.echoed(index), shown)

    def _chunks(self, items: Sequence[Item]) -> Iterator[Json]:
        for index, event, usage in items:
            if isinstance(event, Piece):
                yield from self._renderer.chunks(index, event, usage)
            else:
                yield self._renderer.last_chunk(index, event, usage)


async def _unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result | None:
    """The work's result; None if the client left first, and then the work is cancelled."""
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(sse.left(request.receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
