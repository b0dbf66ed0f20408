"""A client's connection: bytes to requests and back, by uvicorn on h11.

Knows: HTTP/1.1's framing, and which clients may keep a connection to themselves. Does not know:
routes, what is asked. What isn't a request is answered here, because no application sees it.

Why h11: ADR 0017.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any, ClassVar

import h11
from h11._writers import ChunkedWriter
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.api import errors
from server.api.dialects import refusal
from server.api.errors import ApiError

HEADERS_S = 30.0
"""How long a request's headers may take, from the connection's opening or their first byte."""

SEND_TIMEOUT_S = 30.0
"""How long a client may take in nothing of what waits for it."""

MAX_HEADERS = 64 * 1024
"""Bytes of headers that are kept while they are incomplete. (h11's own 16 KiB is less than some
proxies add.)"""

_ORIGIN = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class _Requests(h11.Connection):
    """What h11 leaves to servers of what RFC 9112 asks of them.

    status: of the refusal, where what came was no request.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADERS)
        self.status = 400

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state in (h11.IDLE, h11.DONE):
            self._skip_blank_lines()
        try:
            event = super().next_event()
            return self._checked(event) if isinstance(event, h11.Request) else event
        except h11.RemoteProtocolError as error:
            self.status = error.error_status_hint
            raise

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        """A stream's next chunk leaves h11's state as it is, and needs none of its questions."""
        if type(event) is h11.Data and event.data and type(self._writer) is ChunkedWriter:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data)
        return super().send(event)

    def _skip_blank_lines(self) -> None:
        """Some clients end a body with a line break that belongs to nothing (2.2)."""
        data = self.trailing_data[0]
        if blank := len(data) - len(data.lstrip(b"\r\n")):
            self._receive_buffer.maybe_extract_at_most(blank)

    @staticmethod
    def _checked(request: h11.Request) -> h11.Request:
        if request.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("another version of HTTP", error_status_hint=505)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in request.headers}:
            # A proxy may go by the one and this server by the other: then it takes a part of
            # somebody's body for a request (6.1).
            raise h11.RemoteProtocolError("a body of two lengths")
        origin = _ORIGIN.match(request.target)
        if origin is None:
            return request
        # As to a proxy (3.2.2). Whose name it gives makes no difference here.
        target = request.target[origin.end() :]
        return h11.Request(
            method=request.method,
            target=target if target.startswith(b"/") else b"/" + target,
            headers=request.headers,
            http_version=request.http_version,
        )


class Connection(H11Protocol):
    """uvicorn's, where:

    - an upgrade that a client offers (to HTTP/2, to a web socket) is passed over without a word,
      and the request answered as it is;
    - a client that doesn't come to the end of a request's headers, or sends on at length what
      was answered already, is let go. For the body of a request that isn't answered yet others
      have a clock (`server.api.body`, `server.api.middleware`);
    - what isn't a request is answered in the contract's shape.

    - a client that has stopped reading, while more waits for it than its connection holds, is let
      go too.

    headers_s, send_timeout_s: see `HEADERS_S`, `SEND_TIMEOUT_S`.
    """

    headers_s: ClassVar[float] = HEADERS_S
    send_timeout_s: ClassVar[float] = SEND_TIMEOUT_S

    @classmethod
    def within(cls, send_timeout_s: float) -> type[Connection]:
        """For uvicorn, which makes connections of a class."""
        return type("Connection", (cls,), {"send_timeout_s": send_timeout_s})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: _Requests = _Requests()
        self._clock: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def _should_upgrade(self) -> bool:
        return False

    # -- time --------------------------------------------------------------------------------

    def _owes(self) -> bool:
        """Whether the client owes a request's headers, or the rest of an answered one's body."""
        theirs = self.conn.their_state
        answered = self.conn.our_state is h11.DONE
        return theirs is h11.IDLE or (theirs is h11.SEND_BODY and answered)

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self.headers_s, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        self._clock = None
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(errors.unreadable(408))
        else:
            # It has begun nothing: it might take a response for that to its next request.
            self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        # From here on, and not from the answer before it: for silence uvicorn has its own clock.
        if self._owes():
            self._start_clock()
        super().data_received(data)
        if not self._owes():
            self._stop_clock()

    def pause_writing(self) -> None:
        """asyncio calls this when much waits to be sent, and `resume_writing` when it doesn't."""
        super().pause_writing()
        self._look_again(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._stop_looking()
        super().resume_writing()

    def _look_again(self, waits: int) -> None:
        self._reading = self.loop.call_later(self.send_timeout_s, self._has_it_read, waits)

    def _stop_looking(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _has_it_read(self, waited: int) -> None:
        """A slow reader may be as slow as it likes."""
        waits = self.transport.get_write_buffer_size()
        if waits >= waited:
            self.transport.abort()
        else:
            self._look_again(waits)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        self._stop_looking()
        super().connection_lost(exc)

    # -- what isn't a request ----------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this when it couldn't read what came."""
        self._refuse(errors.unreadable(self.conn.status))

    def _refuse(self, failure: ApiError) -> None:
        """Say so, where no response has begun, and close."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # whatever the application still has to say
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = refusal(failure, {"state": {}})
            headers = [
                *self.server_state.default_headers,
                *response.raw_headers,
                (b"x-request-id", uuid.uuid4().hex.encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=response.status_code, headers=headers),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
