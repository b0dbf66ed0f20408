"""Where a word ends.

Knows: whitespace, scripts without it, and tokens that are parts of characters. Does not know: who
writes the word, engines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

from server.text.tokenizer import Tokenizer
from server.text.vocabulary import first_char

# Scripts written without spaces, and their punctuation: Thai, Lao, Burmese, Khmer, kana, Han.
SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff\uaa60-\uaa7f"
    "\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U0001b000-\U0001b16f\U00020000-\U000323af]"
)


class Part(Enum):
    """What a token is to the word being written."""

    INSIDE = "inside"  # part of it, and more may come
    LAST = "last"  # part of it, and nothing more is
    BEYOND = "beyond"  # the word had ended before this token


class Word:
    """Follows one word, token by token.

    A word reaches up to, and not including, the next whitespace after a non-whitespace
    character; leading whitespace belongs to it. In scripts without spaces it is one token's
    worth of whole characters. A token is never cut: one that holds the ending whitespace
    itself (".\\n\\n") is the word's last (docs/adr/0003).

    begun: the tokens of it that are there already.
    """

    def __init__(self, tokenizer: Tokenizer, begun: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = tokenizer.decoder()
        self._line = ""  # text since the decoder was last between characters
        self.open = False  # a whole non-whitespace character has been seen
        for token in begun:
            self.push(token)

    @property
    def inside_character(self) -> bool:
        return self._decoder.pending > 0

    def push(self, token: int) -> Part:
        data = self._tokenizer.token_bytes(token)
        between = not self._decoder.pending
        if self.open and between and first_char(data).isspace():
            return Part.BEYOND
        self._line = ("" if between else self._line) + self._decoder.push(token)
        if self._decoder.pending:
            return Part.INSIDE
        inner = self._line if self.open else self._line.lstrip()
        self.open = self.open or bool(inner)
        if any(char.isspace() for char in inner) or SPACELESS.search(self._line):
            return Part.LAST
        return Part.INSIDE
