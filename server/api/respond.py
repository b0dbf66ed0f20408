"""How answers are sent: several at once, whole or as a stream, to a client that may leave.

Knows: writers, parsers, replies, and that a client who leaves frees the engines. Does not know: a
rule of the policy, the shape of anything that is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from server.api import sse
from server.api.admission import Ticket
from server.api.ask import Ask, Chat
from server.api.dialect import Json, Reply, Written
from server.api.errors import as_api_error
from server.api.limits import check_prompts, take_ticket
from server.api.watch import Watch, watching
from server.core import AnswerRequest, Finished, Usage
from server.decoding.parsing import Parser, Part, Plain
from server.decoding.stream import Channel, Event, Item, Matches, Output, Writer, answer

Result = TypeVar("Result")

AT_ONCE = 64
"""Events that are sent in one piece at most."""


@dataclass(frozen=True)
class Answers:
    """What one request asks for: for each prompt, its independent answers.

    request: see `Ask.request`.
    matches: see `server.decoding.stream.answer`.
    echo: for each prompt, the text that goes in front of its answers.
    parser: makes one for each answer.
    """

    ask: Ask
    request: AnswerRequest
    writers: Sequence[Sequence[Writer]]
    matches: Matches
    echo: Sequence[str] | None = None
    parser: Callable[[], Parser] = Plain

    @property
    def all(self) -> list[Writer]:
        """In the order of their ``index``."""
        return [writer for writers in self.writers for writer in writers]

    def echoed(self, index: int) -> str:
        return "" if self.echo is None else self.echo[index // len(self.writers[0])]

    def usage(self) -> Usage:
        """What the whole request cost; each prompt is counted once."""
        return Usage.total([[writer.usage() for writer in writers] for writers in self.writers])


async def respond(request: Request, answers: Answers, reply: Reply) -> Response:
    ask = answers.ask
    settings = request.app.state.registry.settings.server
    watch = watching(request)
    watch.answering(
        request.app.state.registry.resolve(ask.model),
        answers.request,
        answers.writers,
        operation="chat" if isinstance(ask.prompt, Chat) else "text_completion",
        stream=ask.stream,
    )
    check_prompts(settings, ask.prompt, answers.writers)
    watch.named(reply.id)
    writing = Writing(answers, take_ticket(request, len(answers.all), ask.priority), watch)
    response: Response | None = None
    try:
        if not ask.stream:
            whole = await _unless_left(request, _whole(writing, answers, reply))
            response = Response(status_code=499) if whole is None else JSONResponse(whole)
        # What fails before anything was written has its status.
        elif await _unless_left(request, writing.begun()) is None:
            response = Response(status_code=499)  # nobody is there to read it
        else:
            stream = _Stream(writing, answers, reply, watch)
            response = sse.EventStream(
                stream, keep_alive_s=settings.keep_alive_s, keep_alive=reply.keep_alive
            )
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
        running = answers.ask.running_usage
        async with ticket.limit():
            await ticket.turn()
            watch.begun()
            try:
                async with asyncio.TaskGroup() as group:
                    for index, writer in enumerate(answers.all):
                        out = Output(
                            answers.request,
                            self._channel,
                            index,
                            observe=watch.event,
                            cost=writer.usage if running else None,
                        )
                        group.create_task(answer(writer, out, answers.matches))
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None  # the others were cancelled for it

    async def aclose(self) -> None:
        """Stop, if it isn't done; returns when the engines are free."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _whole(writing: Writing, answers: Answers, reply: Reply) -> Json:
    parsers = [answers.parser() for _ in answers.all]
    parts: list[list[Part]] = [[] for _ in answers.all]
    ends: dict[int, Finished] = {}
    while items := await writing.take():
        for index, event, _ in items:
            for each in _parsed(parsers[index], event):
                if isinstance(each, Finished):
                    ends[index] = each
                else:
                    parts[index].append(each)
    written = [
        Written(each, ends[index], answers.echoed(index)) for index, each in enumerate(parts)
    ]
    return reply.whole(written, answers.usage())


def _parsed(parser: Parser, event: Event) -> Iterable[Part | Finished]:
    return parser.end(event) if isinstance(event, Finished) else parser.push(event)


class _Stream:
    """A stream's bytes as they come; or, where an answer failed, what its dialect says to that."""

    def __init__(self, writing: Writing, answers: Answers, reply: Reply, watch: Watch) -> None:
        self._writing = writing
        self._answers = answers
        self._parsers = [answers.parser() for _ in answers.all]
        self._reply = reply
        self._watch = watch
        self._items: list[Item] = []
        self._first = True
        self._over = False
        self.aclose = writing.aclose

    async def next(self) -> bytes:
        """What there is to send now; nothing where that was all."""
        frames: list[bytes] = []
        while not frames and not self._over:  # what was written may say nothing
            frames = await self._frames()
        return b"".join(frames)

    async def _frames(self) -> list[bytes]:
        try:
            if not self._items:
                self._items = await self._writing.take()
            items, self._items = self._items[:AT_ONCE], self._items[AT_ONCE:]
            frames = [*self._beginning(items), *self._shown(items)]
            if not items:
                frames += self._reply.over(self._answers.usage())
                self._over = True
            return frames
        except Exception as error:
            # The status is out already, so the stream itself must say it.
            failure = as_api_error(error)
            self._watch.failed(failure.code or str(failure.status))
            self._over = True
            return [*self._reply.failed(failure)]

    def _beginning(self, items: Sequence[Item]) -> Iterator[bytes]:
        if self._first:
            self._first = False
            for index in range(len(self._answers.all)):
                usage = next((usage for number, _, usage in items if number == index), Usage())
                shown = usage if self._answers.ask.running_usage else None
                yield from self._reply.begins(index, self._answers.echoed(index), shown)

    def _shown(self, items: Sequence[Item]) -> Iterator[bytes]:
        for index, event, usage in items:
            for each in _parsed(self._parsers[index], event):
                yield from self._reply.shows(index, each, usage)


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
