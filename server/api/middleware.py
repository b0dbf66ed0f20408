"""What every request and response gets, whatever its route.

Knows: ASGI. Does not know: routes. The layers, from the outside in (`server.api.app`):
`Envelope`, CORS, `BodyLimit`, `Failures`, then access, and the routes. So what any of
them answers has a request id and can be read by a page that may ask at all.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api import errors
from server.api.dialects import refusal

_REQUEST_ID = re.compile(r"[\w.:-]{1,200}")

LINGER_S = 30.0
"""How long a body that nobody wants is read on, as nginx does (``lingering_time``)."""


class Envelope:
    """An ``X-Request-Id`` on every response, the client's own where it sent one (and a
    ``Request-Id``, which is Anthropic's name for it), and
    ``/v1//models/`` (a base URL that ends in a slash, and one more at the end) read as
    ``/v1/models``. A redirect there would not do: behind a proxy that speaks HTTPS it would send
    the client, and its key, to plain HTTP.

    Leaves in the request's state: ``request_id``, and ``arrived`` (the event loop's time).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = re.sub("/{2,}", "/", scope["path"])
        scope["path"] = path.removesuffix("/") or "/"
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["arrived"] = asyncio.get_running_loop().time()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = headers["Request-Id"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class BodyLimit:
    """No body of more than ``most`` bytes is taken in: by its declared length it is refused
    before any of it is read, and one of no declared length where it gets too long.

    A response that goes out before such a body is in ends its connection, but not at once:
    with unread data the system would reset it, and the client, still sending, might never see
    the response.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        declared = headers.get("content-length")
        if declared is not None and int(declared) > self.most:  # h11 saw to digits
            answer = refusal(errors.too_large(self.most), scope)
            await answer(scope, receive, _Lingering(receive, send).send)
        elif "transfer-encoding" in headers:
            lingering = _Lingering(receive, send, self.most)
            await self.app(scope, lingering.receive, lingering.send)
        else:
            await self.app(scope, receive, send)


class _Lingering:
    """``receive`` and ``send`` of one request whose body may be too long."""

    def __init__(self, receive: Receive, send: Send, most: int = 0) -> None:
        self._receive = receive
        self._send = send
        self._most = most
        self._got = 0
        self._unread = True
        self._closing = False

    async def receive(self) -> Message:
        """Raises `ApiError` where the body has become too long."""
        message = await self._receive()
        self._got += len(message.get("body", b""))
        self._unread = message.get("more_body", False)
        if self._got > self._most:
            raise errors.too_large(self._most)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._unread:
            self._closing = True
            MutableHeaders(scope=message)["Connection"] = "close"
        if message["type"] == "http.response.start" or not self._closing:
            await self._send(message)
            return
        ends = not message.get("more_body", False)
        await self._send({**message, "more_body": True})
        if ends:
            # The client has the whole response now, by its Content-Length.
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while (await self._receive()).get("more_body", False):
                        pass
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class Failures:
    """Answers what is raised under it, as long as no response has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if began or scope["type"] != "http":
                raise  # uvicorn logs it, and cuts the connection
            await refusal(errors.as_api_error(error), scope)(scope, receive, send)
