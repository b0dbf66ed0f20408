"""How long an answer's thoughts may become.

Knows: the marks of thoughts, and an answer's pieces as they come. Does not know: who writes it.
"""

from __future__ import annotations

from server.core import UNLIMITED, Piece, ThinkingLimit

CHARACTER = 4
"""Tokens of a character, at most: its bytes in UTF-8."""


class ThinkingBudget:
    """That of one answer.

    Its thoughts are at its beginning, or nowhere (`server.decoding.thinking`). left: tokens that
    they may still take.
    """

    def __init__(self, limit: ThinkingLimit | None) -> None:
        """``limit``: None: they may take any number."""
        self._limit = limit
        self._thinks = limit is not None and limit.thinking
        self._over = limit is None
        self._end = ""  # of the text so far, as much of it as is needed
        self.left = UNLIMITED if limit is None else limit.tokens

    @property
    def due(self) -> bool:
        """Whether they are to end here, with `closing`."""
        return self._thinks and not self._over and self.left <= 0

    @property
    def closing(self) -> str:
        assert self._limit is not None
        return f"\n{self._limit.closes}\n\n"

    def most(self, tokens: int) -> int:
        """Of a turn that may take so many, how many it may take now: those of a character in any
        case, which is never cut."""
        if not self._thinks or self._over:
            return tokens
        return min(tokens, max(self.left, CHARACTER))

    def hear(self, piece: Piece) -> None:
        """The answer goes on with this."""
        if self._over or self._limit is None:
            return
        if self._thinks:
            self.left -= piece.tokens
        self._end += piece.text
        if not self._thinks:
            self._begin(self._limit)
        if self._thinks and any(mark in self._end for mark in self._limit.ends):
            self._over = True
        elif self._thinks:
            self._end = self._end[-max(map(len, self._limit.ends)) :]

    def _begin(self, limit: ThinkingLimit) -> None:
        text = self._end.lstrip()
        if text.startswith(limit.opens):
            self._thinks, self._end = True, text.removeprefix(limit.opens)
        elif not limit.opens.startswith(text):
            self._over = True
