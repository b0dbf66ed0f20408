"""What is observed of one request, for the metrics, the traces and the log.

Knows: when a request came, what its answers did and when, how it ended, and what of that is
shown to whom. Does not know: how an answer is written or sent. Text of prompts and answers goes
nowhere from here, nor does a header.

While an answer is written, a piece costs a reading of the clock and a few appends; everything
else is worked out once, when the request has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import playground
from server.api.observed import ObservedAnswer
from server.core import AnswerRequest, Finished, Piece, Usage
from server.decoding.stream import Writer
from server.serving.catalog import Served
from server.telemetry import logs
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import Span, Tracing, Value

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger("nudge.request")

CLIENT_LEFT = 499
"""nginx's status for a client that left before its response was complete."""

PROBES = frozenset({"/health", "/ready", "/metrics", *playground.FILES})
"""Routes that machines ask every few seconds, and a page's files: logged at debug, not traced."""

MAX_TURNS = 256
"""Spans of turns that one request may have."""

_GUARDS = frozenset({"repeated_round", "repetition", "repeated_nudging_words"})


def watching(request: Request) -> Watch:
    """The request's watch."""
    watch: Watch = request.state.watch
    return watch


class Watching:
    """Under `Envelope`, which names the request, and around everything else: nothing is
    answered that it doesn't see.

    Leaves in the request's state: ``watch``.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        watch = Watch(self.metrics, self.tracing)
        scope["state"]["watch"] = watch
        logs.request_id.set(scope["state"]["request_id"])
        complete = False

        async def watched_receive() -> Message:
            message = await receive()
            # After a complete response every server says so.
            if message["type"] == "http.disconnect" and not complete:
                watch.left = True
            return message

        async def watched_send(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                watch.status = message["status"]
            elif not message.get("more_body", False):
                complete = True
            await send(message)

        try:
            await self.app(scope, watched_receive, watched_send)
        except asyncio.CancelledError:
            watch.failed("cancelled")
            raise
        except Exception:
            watch.failed("internal_error")
            raise
        finally:
            watch.ended(scope)


class Watch:
    """One request."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None) -> None:
        self.status: int | None = None
        self.left = False
        self._metrics = metrics
        self._tracing = tracing
        self._began = time.perf_counter()
        self._began_ns = time.time_ns()
        self._writing: float | None = None
        self._error: str | None = None
        self._model: str | None = None
        self._operation = ""
        self._answers: list[ObservedAnswer] = []
        self._writers: Sequence[Sequence[Writer]] = ()
        self._attributes: dict[str, Value] = {}

    def answering(
        self,
        served: Served,
        request: AnswerRequest,
        writers: Sequence[Sequence[Writer]],
        *,
        operation: str,
        stream: bool,
    ) -> None:
        """It asks for answers: for each prompt, some. They wait for their turn. ``operation``:
        OpenTelemetry's name for what is asked for."""
        self._operation = operation
        self._model = served.name if served.role == "nudged" else f"{served.name}:{served.role}"
        self._writers = writers
        flat = [writer for each in writers for writer in each]
        traced = self._tracing is not None
        self._answers = [ObservedAnswer(traced) for _ in flat]
        self._metrics.waiting(self._model, len(flat))
        if traced:
            self._attributes = _asked(self._model, request, len(flat), stream)

    def named(self, response_id: str) -> None:
        """The id of the response."""
        self._attributes["gen_ai.response.id"] = response_id

    def begun(self) -> None:
        """It is its answers' turn."""
        assert self._model is not None
        self._writing = time.perf_counter()
        self._metrics.waiting(self._model, -len(self._answers))
        self._metrics.running(self._model, len(self._answers))

    def event(self, index: int, event: Piece | Finished) -> None:
        """A piece, or the end, of one answer, as it goes out."""
        self._answers[index].take(event)

    def failed(self, error: str) -> None:
        """It failed where the status can't say so any more; ``error``: an error's code."""
        self._error = error

    def ended(self, scope: Scope) -> None:
        """It is over, however it ended: tell everybody."""
        now = time.perf_counter()
        if self.left:
            status = CLIENT_LEFT
        elif self.status is not None:
            status = self.status
        else:
            status = CLIENT_LEFT if self._error == "cancelled" else 500
        route = _route(scope)
        self._metrics.responded(route, scope["method"], status)
        usage = self._usage()
        if self._model is not None:
            count = self._metrics.waiting if self._writing is None else self._metrics.running
            count(self._model, -len(self._answers))
            self._metrics.used(self._model, usage)
            for answer in self._answers:
                self._count(self._model, answer, status)
        self._log(scope, route, status, now - self._began, usage)
        if self._tracing is not None and route not in PROBES:
            request = self._span(scope, route, status, now, usage)
            turns = itertools.islice(self._turns(status, now), MAX_TURNS)
            self._tracing.record(Headers(scope=scope), request, turns)

    def _usage(self) -> Usage:
        """What was computed. A prompt whose answers never began was not read."""
        prompts = [[writer.usage() for writer in writers] for writers in self._writers]
        return Usage.total(
            [each for each in prompts if any(u.base_steps + u.aligned_steps for u in each)]
        )

    def _count(self, model: str, answer: ObservedAnswer, status: int) -> None:
        times, end = answer.times, answer.end
        if answer.finished is not None:
            guarded = answer.finished.stop_reason in _GUARDS
            reason: str | None = "repetition" if guarded else answer.finished.finish_reason
        else:
            reason = self._unfinished(status)
        self._metrics.answered(
            model,
            reason=reason,
            first_s=times[0] - self._began if times else None,
            whole_s=None if end is None else end - self._began,
            gaps_s=(after - before for before, after in itertools.pairwise(times)),
            taken=answer.taken,
            rejected=answer.rejected,
        )

    def _unfinished(self, status: int) -> str | None:
        """Why an answer has no end: of `server.telemetry.metrics.FINISHED_REASONS`."""
        if status == CLIENT_LEFT or self._error == "cancelled":
            return "abort"
        return "error" if status >= 500 or self._error is not None else None

    # -- the log -----------------------------------------------------------------------------

    def _log(
        self, scope: Scope, route: str | None, status: int, seconds: float, usage: Usage
    ) -> None:
        if route in PROBES:
            level = logging.DEBUG
        else:
            level = logging.WARNING if status >= 500 or self._error else logging.INFO
        if not log.isEnabledFor(level):
            return
        shown = quote(scope["path"][:80]) if route is None else route
        fields: dict[str, object] = {
            "method": scope["method"],
            "route": shown,
            "status": status,
            "duration_s": round(seconds, 4),
        }
        text = f"{scope['method']} {shown} {status} {seconds:.2f} s"
        if self._model is not None:
            fields["model"] = self._model
            text += f", {self._model}"
        if self._writing is not None:
            reasons = [answer.reason or "unfinished" for answer in self._answers]
            fields |= {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "nudged_share": round(usage.nudged_share, 4),
                "finish_reasons": reasons,
            }
            text += (
                f", {fields['prompt_tokens']} + {usage.completion_tokens} tokens, "
                f"{usage.nudged_share:.0%} aligned, {' '.join(reasons)}"
            )
        if status == CLIENT_LEFT:
            text += ", the client left"
        if error := self._error or scope["state"].get("error"):
            fields["error"] = error
            text += f", {error}"
        log.log(level, text, extra=fields)

    # -- the trace ---------------------------------------------------------------------------

    def _span(self, scope: Scope, route: str | None, status: int, now: float, usage: Usage) -> Span:
        """Names: OpenTelemetry's conventions for HTTP servers and generative AI, and where
        these have none, vLLM's (``vllm/tracing``); ``nudge.…`` is ours."""
        attributes: dict[str, Value] = {
            "http.request.method": scope["method"],
            "http.response.status_code": status,
            "gen_ai.request.id": scope["state"]["request_id"],
            **self._attributes,
        }
        if route is not None:
            attributes["http.route"] = route
        error = self._error
        if error is None and status >= 500:
            error = scope["state"].get("error") or str(status)
        if error is not None:
            attributes["error.type"] = error
        name = f"{scope['method']} {route or ''}".rstrip()
        if self._model is not None:
            name = f"{self._operation} {self._model}"
            firsts = [answer.times[0] for answer in self._answers if answer.times]
            attributes |= {
                "gen_ai.operation.name": self._operation,
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.response.finish_reasons": [a.reason or "" for a in self._answers],
                "nudge.stop_reasons": [
                    "" if a.finished is None else a.finished.stop_reason for a in self._answers
                ],
                "nudge.rounds": usage.rounds,
                "nudge.nudged_share": usage.nudged_share,
                "nudge.discarded_tokens": usage.discarded_tokens,
                "nudge.turns": sum(len(answer.turns or ()) for answer in self._answers),
            }
            if firsts:
                attributes["gen_ai.latency.time_to_first_token"] = min(firsts) - self._began
        return Span(name, self._began_ns, self._ns(now), attributes, error)

    def _turns(self, status: int, now: float) -> Iterator[Span]:
        """A speaker's consecutive pieces are a turn. It begins where the one before it ended:
        the wait for its first piece is its own."""
        for index, answer in enumerate(self._answers):
            start = self._writing or now
            turns = answer.turns or []
            for turn, following in itertools.zip_longest(turns, turns[1:]):
                end = turn.end
                if following is not None:
                    ended = "uncertain" if turn.speaker == "base" else "base_is_certain"
                elif answer.finished is not None:
                    ended, end = answer.finished.stop_reason, answer.end or now
                else:
                    ended, end = self._unfinished(status) or "abort", now
                yield Span(
                    f"{turn.speaker} turn",
                    self._ns(start),
                    self._ns(end),
                    {
                        "nudge.speaker": turn.speaker,
                        "nudge.answer": index,
                        "nudge.tokens": turn.tokens,
                        "nudge.pieces": turn.pieces,
                        **({} if turn.lowest is None else {"nudge.lowest_top_prob": turn.lowest}),
                        "nudge.ended": ended,
                    },
                )
                start = turn.end

    def _ns(self, moment: float) -> int:
        return self._began_ns + int((moment - self._began) * 1e9)


def _asked(model: str, request: AnswerRequest, answers: int, stream: bool) -> dict[str, Value]:
    """What is known of a request for answers before they are written."""
    sampling = request.sampling
    asked: dict[str, Value] = {
        "gen_ai.provider.name": "nudge",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.choice.count": answers,
        "gen_ai.request.stream": stream,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
    }
    if request.max_tokens is not None:
        asked["gen_ai.request.max_tokens"] = request.max_tokens
    if sampling.seed is not None:
        asked["gen_ai.request.seed"] = sampling.seed
    return asked


def _route(scope: Scope) -> str | None:
    """The template of the route that answers, or would have if a layer had not refused."""
    route = scope.get("route")
    if route is None:
        app: FastAPI = scope["app"]
        routes = (each for each in app.routes if each.matches(scope)[0] is not Match.NONE)
        route = next(routes, None)
    return getattr(route, "path", None)
