"""How far long work is: bars on a terminal, a line now and then in a file.

Knows: counts by name, the clock. Does not know: what the work is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.cli.terminal import err

EVERY_S = 15.0
"""Between two lines in a file."""


class Telling:
    """A context manager around the work, which calls `advance`.

    totals: by name, how many are there and how many there will be.
    """

    def __init__(
        self,
        totals: Mapping[str, tuple[int, int]],
        console: Console = err,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._clock = clock
        self._done = {name: done for name, (done, _) in totals.items()}
        self._totals = {name: total for name, (_, total) in totals.items()}
        self._bars: Progress | None = None
        self._began = self._said = clock()
        self._first = sum(self._done.values())

    def __enter__(self) -> Telling:
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bars = Progress(*columns, console=self._console)
            self._tasks = {
                name: self._bars.add_task(name, completed=self._done[name], total=total)
                for name, total in self._totals.items()
            }
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def advance(self, name: str) -> None:
        """One more of this name is there."""
        self._done[name] += 1
        if self._bars is not None:
            self._bars.advance(self._tasks[name])
            return
        now = self._clock()
        done, total = sum(self._done.values()), sum(self._totals.values())
        if now - self._said >= EVERY_S or done == total:
            self._said = now
            left = (total - done) * (now - self._began) / (done - self._first)
            self._console.print(
                f"{name}: {self._done[name]} of {self._totals[name]}; in all {done} of {total}, "
                f"about {spelled(left)} left",
                markup=False,
                soft_wrap=True,
            )


def spelled(seconds: float) -> str:
    """A time as one says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
