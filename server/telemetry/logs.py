"""The server's log: lines on stderr, to read or as JSON.

Knows: formats and levels. Does not know: what is logged, and by whom. Prompts, answers and keys
are logged by nobody.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import TextIO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from server.config import ServerSettings

TERMINAL = ("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
TEXT = ("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s", None)

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that is being answered; every line that is logged meanwhile has it."""


def configure(settings: ServerSettings, stream: TextIO | None = None) -> None:
    """Log to ``stream`` (unset: stderr) from here on, every library in this process included.

    ``log_level`` is the server's own; libraries are heard from warnings on, or from errors on
    where the level is ``error``. Python's warnings are logged too.
    """
    stream = sys.stderr if stream is None else stream
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(settings, stream))
    handler.addFilter(_of_request)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("nudge").setLevel(level)
    logging.captureWarnings(True)


def formatter(settings: ServerSettings, stream: TextIO) -> logging.Formatter:
    if settings.log_format == "json":
        # One object a line: what a record brings along (``extra``) is beside these.
        return JsonFormatter(
            ["levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "traceback"},
            # vLLM puts this on every record of the process that it is imported in.
            reserved_attrs=[*RESERVED_ATTRS, "vllm_process_name"],
            timestamp="time",
        )
    form, date = TERMINAL if stream.isatty() else TEXT
    return logging.Formatter(form, date, defaults={"request_id": "-"})


def _of_request(record: logging.LogRecord) -> bool:
    if (current := request_id.get()) is not None:
        record.request_id = current
    return True
