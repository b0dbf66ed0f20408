"""The page at ``/``: its files, as they lie in ``static/``, and the headers they go out with.

Knows: which files there are, and that a page which shows models' text must not be able to run any
of it. Does not know: what the page does. It asks the same routes as any other client, with a key
where the server has keys; its own files need none.

Every file has a route of its own, read once when the server starts. So no part of a request ever
becomes a path on the disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.serving.registry import Registry

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

FILES = {
    "/" if file.name == "index.html" else f"/playground/{file.name}": file
    for file in sorted(_FOLDER.iterdir())
    if file.suffix in _TYPES
}
"""The paths of the page's files."""

# No script, style, picture or connection but this server's own, and nothing inline. Trusted types:
# a browser that knows them lets no script turn a string into markup at all.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A new version of the server is a new page: asked for each time, sent where it changed.
    "Cache-Control": "no-cache",
}


def routes(_: Registry) -> APIRouter:
    router = APIRouter()
    for path, file in FILES.items():
        # OpenAPI describes an interface; these are a page.
        router.add_api_route(path, _sent(file), methods=["GET", "HEAD"], include_in_schema=False)
    return router


def _sent(file: Path) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    content = file.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = _HEADERS | {"ETag": tag}

    async def send(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if tag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=_TYPES[file.suffix], headers=headers)

    return send
