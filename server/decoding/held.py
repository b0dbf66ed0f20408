"""What the base model has written and the answer hasn't got yet: it may be a turn's header.

Knows: tokens, and `server.text.headers`. Does not know: sessions, the policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from server.engines.base import Token
from server.text.headers import TurnHeaders
from server.text.tokenizer import Tokenizer


class Held:
    """The base model's tokens on their way into an answer, over all of its turns.

    line: what the last token has in front of the end of a line that isn't empty, where it waits
        for `go_on`; else None.
    """

    def __init__(self, tokenizer: Tokenizer, headers: Sequence[str]) -> None:
        self._headers = TurnHeaders(headers)
        self._tokenizer = tokenizer
        self._decoder = tokenizer.decoder()
        self._tokens: deque[tuple[Token, int]] = deque()  # with the length of its text
        self._free = 0  # characters of them that are the answer's
        self.line: str | None = None

    @property
    def found(self) -> bool:
        """Whether a header has come: what is held is that."""
        return self._headers.found

    def hear(self, text: str) -> None:
        """The answer goes on with text of somebody else."""
        self._headers.hear(text)

    def push(self, token: Token) -> list[Token]:
        """The next token: those that are the answer's now. One that ends a line waits for
        `go_on`."""
        headers = self._headers
        text = self._decoder.push(token.id)
        before, newline, _ = text.partition("\n")
        ends_line = newline and not headers.begins_line(headers.held + before)
        self.line = before if ends_line else None
        self._tokens.append((token, len(text)))
        self._free = headers.push(text)
        return self._ready(len(self._tokens) - bool(ends_line))

    def go_on(self) -> list[Token]:
        """The line is ended: what is the answer's now."""
        self.line = None
        return self._ready(len(self._tokens))

    def _ready(self, most: int) -> list[Token]:
        ready: list[Token] = []
        released = 0
        while len(ready) < most:
            token, length = self._tokens[0]
            if released + length > self._free:
                break
            self._tokens.popleft()
            ready.append(token)
            released += length
        self._headers.release(released)
        self._free -= released
        return ready

    @property
    def first(self) -> Token:
        """The token that waits longest."""
        return self._tokens[0][0]

    @property
    def front(self) -> str:
        """Of the token that waits longest, the text that is the answer's in front of a header, or
        of a line's end."""
        return self._headers.held[: self._free] if self.found else self.line or ""

    def rest(self) -> list[Token]:
        """The turn is over, and what is held was no header."""
        ready = [token for token, _ in self._tokens]
        self._headers.release(len(self._headers.held))
        self._begin()
        return ready

    def drop(self) -> list[Token]:
        """What is held is no part of the answer."""
        dropped = [token for token, _ in self._tokens]
        self._headers.drop()
        self._begin()
        return dropped

    def _begin(self) -> None:
        self._tokens.clear()
        self._free, self.line = 0, None
        self._decoder.reset()
