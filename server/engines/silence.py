"""Whether an engine has fallen silent, and so is to be taken for dead.

A process can hang without dying: a collective operation that never returns, a driver that is
stuck, a debugger. Nothing says so but that no output comes. One answer's silence is no sign: it
may wait for its turn. So the whole engine's is looked at, by the clock of whoever looks:

- An engine is silent while answers wait for its output and none comes, for any of them. One that
  isn't asked for anything is not; nor is one whose output lies there, and its readers are slow.
- It may be silent for ``silence_s``, the setting.
- Reading takes time and is silent, so while some answer waits for the first output since it gave
  the engine something to read, there are `READING_S` more for each id of the longest of these
  texts. (Engines read one text after the other, so the longest bounds the wait for some output;
  summed up, a crowd of requests would let a dead engine hang for hours.)

Knows: counts, and seconds that it is told. Does not know: engines, processes, clocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

READING_S = 0.05
"""Seconds that an engine may take to read one id. Twenty ids a second are slow, on a CPU too."""


class Watch:
    """On one engine.

    heard: outputs of the engine so far, whoever they are for. waiting: answers that wait for one.
    reading: ids that the engine was given, by who waits for the first output after them.
    """

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self.heard = 0
        self.waiting = 0
        self.reading: dict[object, int] = {}
        self.silent_s = 0.0
        self._heard_before = 0

    @property
    def look_s(self) -> float:
        """How often to look."""
        return min(1.0, self.silence_s / 4)

    @property
    def limit_s(self) -> float:
        """How long it may be silent now."""
        return self.silence_s + READING_S * max(self.reading.values(), default=0)

    def look(self, passed_s: float) -> bool:
        """Whether it has been silent for too long.

        Args:
            passed_s: since the last look, as it was meant to be. If the looker was stopped itself,
                the engine could not be heard, and that is no silence of the engine's.
        """
        if not self.waiting or self.heard != self._heard_before:
            self._heard_before = self.heard
            self.silent_s = 0.0
            return False
        self.silent_s += passed_s
        return self.silent_s > self.limit_s

    @contextlib.contextmanager
    def waits(self) -> Iterator[None]:
        """While somebody waits for the engine's output."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
