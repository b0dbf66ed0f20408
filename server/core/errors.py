"""Errors that have a meaning for whoever asked."""

from __future__ import annotations


class NudgeError(Exception):
    """Root of the errors that have a meaning for whoever asked.

    NudgeError
    ├── InvalidRequest        the request can't be served as it is (HTTP 400)
    │   └── ContextLengthExceeded
    ├── EngineUnavailable     an engine is loading, died or went away (HTTP 503)
    └── ConfigError           a configuration can't work; the message says what to change
    """


class InvalidRequest(NudgeError):
    """``param`` names the request field that is wrong."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthExceeded(InvalidRequest):
    def __init__(self, message: str, *, param: str | None = "messages"):
        super().__init__(message, param=param, code="context_length_exceeded")


class EngineUnavailable(NudgeError):
    """The engine can't serve now. ``loading`` when it has not started yet."""

    def __init__(self, message: str, *, loading: bool = False):
        super().__init__(message)
        self.loading = loading


class ConfigError(NudgeError):
    pass
