"""The turn headers of a prompt in what a model writes behind it.

A base model that has written an answer goes on with what its prompt puts there: "\\n\\nQuestion: ".
That is no part of the answer, and until it is known to be none it is held back.

A header is the text itself. Where it begins with a line break it counts at the beginning of a line
only, behind any white space, and from the line's break on; others count anywhere.

Knows: text that comes in pieces. Does not know: tokens, engines, prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

SPACE = 64
"""White space before a header, in characters at most."""


class TurnHeaders:
    """Finds headers in text that comes in pieces, and says how much of it may go out.

    held: what has not gone out, for it could still become one. found: whether it has.
    """

    def __init__(self, headers: Sequence[str]) -> None:
        headers = [header for header in headers if header.strip()]
        self._of_lines = tuple(each.strip() for each in headers if each.startswith("\n"))
        self._anywhere = tuple(each for each in headers if not each.startswith("\n"))
        self._line_begins = True
        self.held = ""
        self.found = False

    def push(self, text: str) -> int:
        """Take in text: how many characters of all that is held may go out now. Behind them, a
        header is found, or what could become one."""
        self.held += text
        for start in self._starts():
            state = self._at(start)
            if state is not None:
                self.found = state
                return start
        return len(self.held)

    def release(self, characters: int) -> None:
        """That many went out."""
        self._line_begins = self.begins_line(self.held[:characters])
        self.held = self.held[characters:]

    def hear(self, text: str) -> None:
        """The text goes on with what is no header, where nothing is held."""
        self._line_begins = self.begins_line(text)

    def drop(self) -> None:
        """What is held is no part of the text."""
        self.held, self.found = "", False

    def begins_line(self, text: str = "") -> bool:
        """Whether another text would begin a line behind this one, spaces apart. The text's
        beginning is a line's."""
        _, newline, line = text.rpartition("\n")
        return not line.strip() and (bool(newline) or self._line_begins)

    def _starts(self) -> list[int]:
        """Where a header could begin, in order."""
        held = self.held
        if self._anywhere:
            return list(range(len(held)))
        if not self._of_lines:
            return []
        starts = [0] if self._line_begins and held else []
        return starts + [i for i, letter in enumerate(held) if letter == "\n" and i not in starts]

    def _at(self, start: int) -> bool | None:
        """Whether a header is there; None: nothing that could become one either."""
        rest = self.held[start:]
        for header in self._anywhere:
            if rest.startswith(header):
                return True
            if header.startswith(rest):
                return False
        if rest[0] == "\n" or (start == 0 and self._line_begins):
            body = rest.lstrip()
            space = len(rest) - len(body)
            if space > SPACE:
                return None
            for header in self._of_lines:
                if body.startswith(header):
                    return True
                if header.startswith(body):
                    return False
        return None
