"""The processes of an engine: what they inherit, and how they are killed.

Knows: signals, the environment, /proc. Does not know: vLLM.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from pathlib import Path


def kill(pid: int) -> None:
    """A process and all that it started: also such as are stopped, and can't notice its end."""
    family = [pid]
    for each in family:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                family += map(int, (task / "children").read_text().split())
    for each in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


@contextlib.contextmanager
def no_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process in the terminal's foreground, and would end the engines under
    answers that the server means to finish. They inherit this thread's signal mask."""
    resource_tracker.ensure_running()  # its start would unblock the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def environment(name: str, value: str | None) -> Iterator[None]:
    """A variable for the engine process, which inherits it when it is spawned; None: as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif value is not None:
            del os.environ[name]
