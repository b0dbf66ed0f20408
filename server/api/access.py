"""Who may ask: API keys.

Knows: where keys are written, what is kept of them, and which routes need none. Does not know:
what a key may do (`server.api.admission` counts what it has running).

Of a key only its SHA-256 is kept, and it is never logged or sent back.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.api import errors, playground
from server.config import ServerSettings
from server.core import ConfigError

OPEN = frozenset({"/health", "/ready", "/version", "/metrics", "/openapi.json", *playground.FILES})
"""Paths that need no key: what a load balancer, a monitor and a browser ask first."""

_DIGEST = "sha256:"


class Keys:
    """The keys that may ask, as digests. False where there are none: then everybody may."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        self._digests = tuple(digests)

    def __bool__(self) -> bool:
        return bool(self._digests)

    @classmethod
    def load(cls, settings: ServerSettings) -> Keys:
        """Raises `ConfigError`, which says where a wrong entry is and not what it is."""
        digests = [
            _digest(key.get_secret_value(), f"server.api_keys[{number}]")
            for number, key in enumerate(settings.api_keys)
        ]
        if settings.api_keys_file is not None:
            found = [_digest(key, where) for where, key in _lines(settings)]
            if not found:
                raise ConfigError(
                    f"server.api_keys_file: {settings.api_keys_file} holds no key, so everybody "
                    "might ask; put one in, or unset it"
                )
            digests += found
        if settings.max_per_key is not None and not digests:
            raise ConfigError(
                "server.max_per_key has no effect without API keys; set server.api_keys or "
                "server.api_keys_file"
            )
        return cls(digests)

    def identify(self, offered: bytes) -> str | None:
        """The name of a key (the first digits of its digest); None if it isn't one of them.

        Compares with every key, each in constant time: how long it takes tells nothing.
        """
        digest = hashlib.sha256(offered).digest()
        same = [hmac.compare_digest(digest, each) for each in self._digests]
        return digest.hex()[:12] if any(same) else None


class Access:
    """Lets nobody through without a key, but to `OPEN` paths and with a browser's question
    whether a page may ask (CORS preflight), which can't carry one. A key comes as OpenAI's clients
    send it or as Anthropic's do (``x-api-key``); of two it is enough that one is known.

    Leaves in the request's state: ``key``, the name of the key. Raises `ApiError` (401).
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            headers = Headers(scope=scope)
            preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
            if not preflight:
                # As they were sent. Each is compared, whether or not another one is known.
                names = [self.keys.identify(key.encode("latin-1")) for key in _offered(headers)]
                if not any(names):
                    raise errors.no_key()
                scope["state"]["key"] = next(filter(None, names))
        await self.app(scope, receive, send)


def _offered(headers: Headers) -> Iterator[str]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield token.strip()
    if "x-api-key" in headers:
        yield headers["x-api-key"].strip()


def _lines(settings: ServerSettings) -> Iterator[tuple[str, str]]:
    """The entries of the keys' file, each with where it is."""
    assert settings.api_keys_file is not None
    try:
        text = settings.api_keys_file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"server.api_keys_file: {settings.api_keys_file} can't be read: {reason}"
        ) from None
    for number, line in enumerate(text.splitlines(), 1):
        # As in YAML: a key may hold a #, so it begins a comment only after a space.
        if key := re.sub(r"(^|\s)#.*", "", line).strip():
            yield f"server.api_keys_file: line {number}", key


def _digest(key: str, where: str) -> bytes:
    if key.startswith(_DIGEST):
        digits = key.removeprefix(_DIGEST)
        if not re.fullmatch("[0-9a-fA-F]{64}", digits):
            raise ConfigError(f"{where}: after 'sha256:' come 64 hex digits")
        return bytes.fromhex(digits)
    if not key:
        raise ConfigError(f"{where}: an empty key")
    if re.search(r"\s|[\x00-\x1f\x7f]", key):
        raise ConfigError(f"{where}: a key with a space or control character can't be sent")
    return hashlib.sha256(key.encode()).digest()
