"""Where an answer's prose ends, behind which it follows a grammar.

Knows: a grammar's opening (`Grammar.opens`), and text that comes in pieces. Does not know: what
the grammar allows.
"""

from __future__ import annotations

from server.core import Grammar


class Prose:
    """Of one answer. over: whether it has none, or no more."""

    def __init__(self, grammar: Grammar | None) -> None:
        self._opens = "" if grammar is None else grammar.opens
        self._only_first = grammar is not None and grammar.only_first
        self.over = grammar is not None and not grammar.free
        self._end = "" if grammar is None else grammar.begun

    def hear(self, text: str) -> None:
        """The answer goes on with this."""
        if self.over or not self._opens:
            return
        self._end += text
        if self._only_first:
            self.over = self._end.removeprefix(" ").startswith(self._opens)
            self._end = self._end[: len(self._opens) + 1]
        else:
            self.over = self._opens in self._end
            self._end = self._end[-len(self._opens) :]
