"""Tool calls in an answer: from text in a model's format to parts.

Knows: a row of `server.text.tools.formats`, and where a JSON object ends. Does not know: grammars,
which tools there are, how a call is shown.

The grammar of an answer (`server.text.grammar.calls`) lets a call be written in one way alone.
What is here is for that, and for what came of it where an answer was cut: of a call whose name is
not whole nothing is told, of one whose arguments aren't, what there is of them. Whatever else isn't
a call is text.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from server.core import Finished, Piece
from server.decoding.parsing import CallArguments, CallBegins, Content, Part
from server.decoding.unread import Reader, begun, one
from server.text.tools.formats import Format

_NAME = re.compile(r"[^\s\"'{}\[\]<>]{1,256}")
_LETTERS = string.ascii_letters + string.digits


def new_id() -> str:
    """A call's."""
    return "call_" + "".join(secrets.choice(_LETTERS) for _ in range(24))


class Calls(Reader):
    """The parser of one answer (`server.decoding.parsing.Parser`)."""

    def __init__(self, format: Format, new_id: Callable[[], str] = new_id) -> None:
        super().__init__(self._prose)
        self._format = format
        self._new_id = new_id
        self._said = False  # whether there was text that isn't white space
        self._number = 0  # calls that have begun
        self._whole = 0  # … and those that are whole
        self._head = format.opening  # what the next call begins with
        self._object = _Object()

    def push(self, piece: Piece) -> Iterable[Part]:
        return self._read(piece)

    def end(self, finished: Finished) -> Iterable[Part | Finished]:
        if self._state == self._name and not finished.was_cut:
            # Half a call, and nobody cut it.
            text = self._unread.text
            whole = self._format.tail + self._format.closes
            self._unread.take(len(whole) if self._number and text.startswith(whole) else 0)
            self._state = self._over
        if self._state in (self._prose, self._over):
            yield from map(Content, self._unread.rest())
        else:
            yield from (Content(piece) for piece in self._unread.rest() if _ends(piece))
        yield replace(finished, calls=self._whole)

    # -- states: what is read next -----------------------------------------------------------------

    def _prose(self) -> Iterator[Part]:
        """Text, up to a call."""
        unread, marker = self._unread, self._format.marker
        text = unread.text
        if self._format.only_first:
            at = len(text) - len(text.removeprefix(" "))
            if self._said or not marker.startswith(text[at : at + len(marker)]):
                at, keep = -1, 0
            elif len(text) - at < len(marker):
                at, keep = -1, len(text)
        else:
            at, keep = text.find(marker), begun(text, marker)
        free = at if at >= 0 else len(text) - keep
        if text[:free].strip():
            self._said = True
        if self._said:
            yield from map(Content, unread.take(free) if free else ())
        elif at >= 0:  # white space in front of a call says nothing
            unread.take(free)
        if at >= 0:
            self._state = self._name

    def _name(self) -> Iterator[Part]:
        """Of a call: all up to where its arguments begin."""
        unread, head, mid = self._unread, self._head, self._format.mid
        text = unread.text
        if not text.startswith(head):
            if not head.startswith(text):
                self._state = self._over
                yield from self._over()
            return
        name, found, behind = text[len(head) :].partition(mid)
        if not found:
            rest = name[: len(name) - begun(name, mid)]
            if rest and not _NAME.fullmatch(rest):
                self._state = self._over
                yield from self._over()
            return
        if not behind:
            return
        if not (_NAME.fullmatch(name) and behind.startswith("{")):
            self._state = self._over
            yield from self._over()
            return
        unread.take(len(head))
        piece = one(unread.take(len(name)))
        unread.take(len(mid))
        yield CallBegins(self._number, self._new_id(), name, piece)
        self._number += 1
        self._object = _Object()
        self._state = self._arguments

    def _arguments(self) -> Iterator[Part]:
        count = self._object.read(self._unread.text)
        for piece in self._unread.take(count) if count else ():
            yield CallArguments(self._number - 1, piece)
        if self._object.whole:
            self._whole += 1
            self._state = self._behind

    def _behind(self) -> Iterator[Part]:
        """What stands behind a call: another one, or the end."""
        form, unread = self._format, self._unread
        following = form.tail + form.between + form.head
        end = form.tail + form.closes
        if unread.text.startswith(following):
            self._head = following
            self._state = self._name
        elif not following.startswith(unread.text) and not end.startswith(unread.text):
            if unread.text.startswith(end):
                unread.take(len(end))
            self._state = self._over
        yield from ()

    def _over(self) -> Iterator[Part]:
        """Text alone."""
        if self._unread.text:
            yield from map(Content, self._unread.take(len(self._unread.text)))


def _ends(piece: Piece) -> bool:
    """Whether it is there for the token with which a model ended."""
    return not piece.text and bool(piece.scored)


class _Object:
    """A JSON object that comes in pieces. whole: whether it has come to its end."""

    def __init__(self) -> None:
        self.whole = False
        self._depth = 0
        self._string = False
        self._escaped = False

    def read(self, text: str) -> int:
        """How many characters of a text are its own."""
        for number, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._string:
                self._escaped = letter == "\\"
                self._string = letter != '"'
            elif letter == '"':
                self._string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    self.whole = True
                    return number + 1
        return len(text)
