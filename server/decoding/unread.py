"""Text that a parser has and can't yet say anything of, and how it comes to say something.

Knows: pieces, and where they may be cut. Does not know: what the text means.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from server.core import Piece
from server.decoding.parsing import Part
from server.decoding.stream import cut


class Unread:
    """The end of an answer so far, and the pieces that it consists of."""

    def __init__(self) -> None:
        self.text = ""
        self._pieces: deque[Piece] = deque()

    def push(self, piece: Piece) -> None:
        self.text += piece.text
        self._pieces.append(piece)

    def take(self, characters: int) -> list[Piece]:
        """The first of it, which is read then."""
        self.text = self.text[characters:]
        taken: list[Piece] = []
        while self._pieces and (length := len(self._pieces[0].text)) <= characters:
            if not characters and self.text:
                break  # what has no text goes with the text in front
            taken.append(self._pieces.popleft())
            characters -= length
        if characters:
            first, self._pieces[0] = cut(self._pieces[0], characters)
            taken.append(first)
        return taken

    def rest(self) -> Iterator[Piece]:
        """All of it, and what has no text."""
        self.text = ""
        while self._pieces:
            yield self._pieces.popleft()


class Reader:
    """A parser that is in one state at a time: what it reads next. Each gives away what it can say
    of what is unread, and may leave the rest to another one."""

    def __init__(self, state: Callable[[], Iterator[Part]]) -> None:
        self._unread = Unread()
        self._state = state

    def _read(self, piece: Piece) -> Iterator[Part]:
        if piece.only_tokens and not piece.scored:
            return
        self._unread.push(piece)
        state = None
        while state != self._state:
            state = self._state
            yield from state()


def begun(text: str, mark: str) -> int:
    """How many characters at a text's end are the beginning of a mark, and not all of it."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0


def one(pieces: Sequence[Piece]) -> Piece:
    """Several pieces as one, by the speaker of the first."""
    first = pieces[0]
    return replace(
        first,
        text="".join(piece.text for piece in pieces),
        tokens=sum(piece.tokens for piece in pieces),
        scored=tuple(token for piece in pieces for token in piece.scored),
    )
