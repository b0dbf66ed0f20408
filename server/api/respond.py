"""How answers are sent: several at once, whole or as a stream, to a client that may leave.

Knows: writers, renderers, and that a client who leaves frees the engines. Does not know: which
route asked, a rule of the policy, OpenAI's shapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
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
from server.decoding.stream import Matches, Writer, stream

Result = TypeVar("Result")
Event = Piece | Finished

BUFFERED = 64
"""Events of several answers that wait for a slow reader; then the writers wait too."""


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

    def events(self, watch: Watch) -> AsyncGenerator[tuple[int, Event]]:
        streams = [stream(writer, self.request, self.matches) for writer in self.all]
        return _one(streams[0], watch) if len(streams) == 1 else merged(streams, watch)


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
    ticket = take_ticket(request, len(answers.all), body.priority or 0)
    renderer = kind(
        body.model,
        trace=body.trace,
        include_usage=body.include_usage,
        rewrites=answers.all[0].rewrites,
        top=answers.request.top_logprobs,
    )
    watch.named(renderer.id)
    events = answers.events(watch)
    if not body.stream:
        whole = await _unless_left(request, _whole(events, ticket, answers, renderer))
        return Response(status_code=499) if whole is None else JSONResponse(whole)
    # The first event is awaited before the response begins: what fails early has its status.
    first = await _unless_left(request, _first(events, ticket))
    if first is None:
        return Response(status_code=499)  # nobody is there to read it
    return sse.EventStream(
        _events(first, events, ticket, answers, renderer, watch), keep_alive_s=settings.keep_alive_s
    )


async def _one(events: AsyncGenerator[Event], watch: Watch) -> AsyncGenerator[tuple[int, Event]]:
    watch.begun()
    async with aclosing(events):
        async for event in events:
            watch.event(0, event)
            yield 0, event


async def merged(
    streams: Sequence[AsyncGenerator[Event]], watch: Watch
) -> AsyncGenerator[tuple[int, Event]]:
    """The events of several answers as they come, each with its answer's index.

    Raises what the first of them to fail raises; then, and when closed, all are closed.
    """
    watch.begun()
    queue: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(BUFFERED)

    async def pump(index: int, events: AsyncGenerator[Event]) -> None:
        async with aclosing(events):
            try:
                async for event in events:
                    await queue.put((index, event))
            except Exception as error:
                await queue.put((index, error))

    pumps = [asyncio.create_task(pump(index, each)) for index, each in enumerate(streams)]
    left = len(pumps)
    try:
        while left:
            index, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, Finished)
            watch.event(index, event)
            yield index, event
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _first(events: AsyncGenerator[tuple[int, Event]], ticket: Ticket) -> tuple[int, Event]:
    async with ticket.limit():
        await ticket.turn()
        return await anext(events)


async def _whole(
    events: AsyncGenerator[tuple[int, Event]],
    ticket: Ticket,
    answers: Answers,
    renderer: Renderer,
) -> Json:
    count = len(answers.all)
    pieces: list[list[Piece]] = [[] for _ in range(count)]
    ends: list[Finished | None] = [None] * count
    async with ticket.limit(), aclosing(events):
        await ticket.turn()
        async for index, event in events:
            if isinstance(event, Finished):
                ends[index] = event
            else:
                pieces[index].append(event)
    choices = [
        renderer.choice(index, pieces[index], end, answers.echoed(index))
        for index, end in enumerate(ends)
        if end is not None
    ]
    if len(choices) < count:
        raise RuntimeError("an answer ended without saying how")
    return renderer.whole(choices, answers.usage())


async def _events(
    first: tuple[int, Event],
    rest: AsyncGenerator[tuple[int, Event]],
    ticket: Ticket,
    answers: Answers,
    renderer: Renderer,
    watch: Watch,
) -> AsyncGenerator[bytes]:
    """The stream's bytes: chunks, or one lone error where an answer failed, then DONE."""
    writers = answers.all
    running = answers.body.continuous_usage
    left = len(writers)
    async with aclosing(rest):
        try:
            async with ticket.limit():
                for index in range(left):
                    usage = writers[index].usage() if running else None
                    for chunk in renderer.first_chunks(index, answers.echoed(index), usage):
                        yield sse.event(chunk)
                index, event = first
                while True:
                    usage = writers[index].usage() if running else None
                    if isinstance(event, Piece):
                        for chunk in renderer.chunks(index, event, usage):
                            yield sse.event(chunk)
                    else:
                        yield sse.event(renderer.last_chunk(index, event, usage))
                        left -= 1
                        if not left:
                            break
                    index, event = await anext(rest)
                for chunk in renderer.usage_chunks(answers.usage()):
                    yield sse.event(chunk)
        except Exception as error:
            # The status is out already, so the stream itself must say it.
            failure = as_api_error(error)
            watch.failed(failure.body["error"]["code"] or str(failure.status))
            yield sse.event(failure.body)
        yield sse.DONE


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
