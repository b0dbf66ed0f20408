"""What one answer did and when, collected while it is written.

Knows: pieces, and the clock. Does not know: requests, and what becomes of what it collects
(`server.api.watch`).
"""

from __future__ import annotations

import math
import time

from server.core import Finished, Piece, Speaker


class ObservedTurn:
    """Consecutive pieces of one speaker. ``end``: when the last came (``perf_counter``, seconds);
    ``lowest``: the lowest top-1 probability among them, None where
    they don't say it."""

    __slots__ = ("end", "lowest", "pieces", "speaker", "tokens")

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.end = 0.0
        self.tokens = 0
        self.pieces = 0
        self.lowest: float | None = None


class ObservedAnswer:
    """One answer as it comes. Times are ``perf_counter``'s, in seconds.

    times: of each piece with a text. taken, rejected: p1 of the base model's tokens that were
    committed and of those that were not. turns: None where nobody wants them. end: when it ended,
    if it did.
    """

    def __init__(self, traced: bool) -> None:
        self.times: list[float] = []
        self.taken: list[float] = []
        self.rejected: list[float] = []
        self.turns: list[ObservedTurn] | None = [] if traced else None
        self.finished: Finished | None = None
        self.end: float | None = None

    @property
    def reason(self) -> str | None:
        return None if self.finished is None else self.finished.finish_reason

    def take(self, event: Piece | Finished) -> None:
        now = time.perf_counter()
        if isinstance(event, Finished):
            self.finished, self.end = event, now
            return
        if event.only_tokens:
            return
        self.times.append(now)
        # Without tokens it is the rest of a piece that was cut, or a policy that rewrites,
        # which has no p1.
        if event.tokens:
            if event.speaker == "base":
                if not math.isnan(event.top_prob):
                    self.taken.append(event.top_prob)
            elif event.rejected is not None:
                self.rejected.append(event.rejected.top_prob)
        if self.turns is not None and event.tokens:
            if not self.turns or self.turns[-1].speaker != event.speaker:
                self.turns.append(ObservedTurn(event.speaker))
            turn = self.turns[-1]
            turn.end = now
            turn.tokens += event.tokens
            turn.pieces += 1
            if not math.isnan(event.top_prob):
                lowest = 1.0 if turn.lowest is None else turn.lowest
                turn.lowest = min(lowest, event.top_prob)
