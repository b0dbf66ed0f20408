"""How a stop string is held back until it is known whether it is one.

Knows: text that comes in pieces. Does not know: tokens, engines.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds stop strings in text that comes in pieces, and says how much may go out.

    Nothing that could still become a stop string is released, and nothing else is held. The
    outcome does not depend on how the text was cut into pieces: the first stop string to be
    complete wins, of two that end together the longer one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self.held = ""

    @property
    def watches(self) -> bool:
        """Whether there are any."""
        return bool(self._stops)

    def push(self, text: str) -> tuple[int, str | None]:
        """Take in text.

        Returns:
            How many characters of everything held and not released yet may go out now, and
            the stop string that was found (what follows those characters is to be dropped).
        """
        if not self._stops:
            return len(text), None
        self.held += text
        found: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = self.held.find(stop)
            if start >= 0:
                match = (start + len(stop), start, stop)
                found = match if found is None else min(found, match)
        if found:
            return found[1], found[2]
        keep = 0
        for length in range(min(self._longest - 1, len(self.held)), 0, -1):
            tail = self.held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                keep = length
                break
        free = len(self.held) - keep
        self.held = self.held[free:]
        return free, None
