"""What a model thinks before it answers: from text with marks to parts.

Knows: a row of `server.text.thinking`. Does not know: what an answer is behind its thoughts, which
another parser reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from server.core import Finished, Piece
from server.decoding.parsing import Parser, Part, Reasoning
from server.decoding.unread import Reader, begun
from server.text.thinking import Thoughts


class Thinking(Reader):
    """The parser of one answer (`server.decoding.parsing.Parser`).

    Thoughts are at the answer's beginning, or nowhere. White space around them says nothing.
    """

    def __init__(
        self, thoughts: Thoughts, behind: Parser, *, thinking: bool = False, marker: str = ""
    ) -> None:
        """
        Args:
            behind: reads what comes behind the thoughts.
            thinking: whether the answer begins in them.
            marker: of a tool call, which ends them too.
        """
        super().__init__(self._beginning)
        self._thoughts = thoughts
        self._marks = [mark for mark in (thoughts.closes, marker) if mark]
        self._parser = behind
        self._thinking = thinking
        self._tokens = 0

    def push(self, piece: Piece) -> Iterable[Part]:
        return self._parser.push(piece) if self._state == self._said else self._read(piece)

    def end(self, finished: Finished) -> Iterable[Part | Finished]:
        if self._state == self._thought or (self._state == self._beginning and self._thinking):
            text = self._unread.text
            yield from self._thinks(len(text.rstrip()))
            self._take(len(self._unread.text))
        for piece in self._unread.rest():
            yield from self._parser.push(piece)
        for each in self._parser.end(finished):
            if isinstance(each, Finished):
                yield replace(each, reasoning_tokens=self._tokens)
            else:
                yield each

    def _beginning(self) -> Iterator[Part]:
        """Whether there are thoughts."""
        opens, unread = self._thoughts.opens, self._unread
        text = unread.text.lstrip()
        if text.startswith(opens):
            self._take(len(unread.text) - len(text) + len(opens))
            self._state = self._before
        elif not opens.startswith(text):
            self._state = self._before if self._thinking else self._said
            if not self._thinking:
                yield from self._said()

    def _before(self) -> Iterator[Part]:
        """White space in front of thoughts."""
        if self._skip_space():
            self._state = self._thought
        yield from ()

    def _thought(self) -> Iterator[Part]:
        unread = self._unread
        text = unread.text
        found = [(at, mark) for mark in self._marks if (at := text.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            yield from self._thinks(len(text[:at].rstrip()))
            text = unread.text
            self._take(text.find(mark) + (len(mark) if mark == self._thoughts.closes else 0))
            self._state = self._behind
            return
        keep = max(begun(text, mark) for mark in self._marks)
        yield from self._thinks(len(text[: len(text) - keep].rstrip()))

    def _thinks(self, characters: int) -> Iterator[Part]:
        yield from map(Reasoning, self._take(characters) if characters else ())

    def _take(self, characters: int) -> list[Piece]:
        """The first of what is unread, which are thoughts, or around them."""
        taken = self._unread.take(characters)
        self._tokens += sum(piece.tokens for piece in taken)
        return taken

    def _behind(self) -> Iterator[Part]:
        """White space behind thoughts."""
        if self._skip_space():
            self._state = self._said
            yield from self._said()

    def _skip_space(self) -> bool:
        """Whether something comes behind it."""
        text = self._unread.text
        self._take(len(text) - len(text.lstrip()))
        return bool(self._unread.text)

    def _said(self) -> Iterator[Part]:
        for piece in self._unread.rest():
            yield from self._parser.push(piece)
