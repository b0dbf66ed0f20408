"""Whether a text goes round in circles.

Knows: tokens and texts. Does not know: whose they are, and what comes of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

BLOCK_LENGTHS = range(5, 65)
BLOCK_REPEATS = 3

CYCLE = 6
"""Sentences that may repeat together, at most."""

SHORTEST = 12
"""Bytes of letters and digits of a sentence that counts: not "Yes.", "}" or "| - | - |"."""

PERIOD = 80
"""Characters of a phrase, at most."""

PHRASE_REPEATS = (3, 48), (4, 72)
"""How often a phrase comes, and in how many characters, to be told of: once, and again."""

_SEEN = 24  # characters by which a phrase is found again
_NUMBER = re.compile(r"\s*\d{1,3}[.)]\s")  # of a list's item, which may come again under another
_WIDE = "\u3002\uff01\uff1f"  # the ideographic full stop, the wide ! and ?
_BREAK = re.compile(rf"(?<=[.!?])(?=\s)|(?<=[{_WIDE}])|\n")
_ENDS = tuple(f".!?{_WIDE}")


class RepeatedBlock:
    """Notices a block of 5 to 64 tokens that comes three times running.

    A block of length n has come three times once 2n tokens in a row equalled the token n
    before them, so one counter a length is all that is kept.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._runs = [0] * BLOCK_LENGTHS.stop

    def repeats(self, token: int) -> bool:
        """Take in the next token; True if a block has just come three times."""
        tokens, runs = self._tokens, self._runs
        tokens.append(token)
        count = len(tokens)
        found = False
        for length in BLOCK_LENGTHS:
            if length >= count:
                break
            if tokens[-1 - length] == token:
                runs[length] += 1
                found = found or runs[length] >= (BLOCK_REPEATS - 1) * length
            else:
                runs[length] = 0
        return found


class RepeatedSentences:
    """Counts how often the same sentences or lines, up to `CYCLE` of them, come in a row."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._begun = ""
        self._told = 0  # sentences that were told of, the one begun among them

    def times(self, text: str) -> int:
        """Take in text: how often what has just come to an end came in a row, 1 if once; 0 where
        nothing has."""
        found = 0
        # A break is seen from the character in front of it; what was read before that has none.
        *ended, rest = _BREAK.split(self._begun[-1:] + text)
        if ended:
            ended[0] = self._begun[:-1] + ended[0]
            self._begun = rest
        else:
            self._begun += text
        for sentence in ended:
            found = max(found, self._ended(sentence, whole=True))
        if self._begun.endswith(_ENDS):  # "3." of "3.5" may be one too, for now
            found = max(found, self._ended(self._begun, whole=False))
        return found

    def _ended(self, sentence: str, *, whole: bool) -> int:
        numbered = _NUMBER.match(sentence)
        sentence = sentence[numbered.end() :] if numbered else sentence
        letters = "".join(filter(str.isalnum, sentence)).casefold()
        if len(letters.encode()) < SHORTEST:
            return 0
        sentences = [*self._sentences[-8 * CYCLE :], letters]
        if whole:
            self._sentences.append(letters)
        number = len(self._sentences) + (not whole)
        if number <= self._told:
            return 0
        times = _in_a_row(sentences)
        if whole or times > 1:
            self._told = number
        return times


def _in_a_row(sentences: Sequence[str]) -> int:
    """How often the last ones came, of the cycle that came most often."""
    best = 1
    for length in range(1, CYCLE + 1):
        last, times = sentences[-length:], 1
        while sentences[-(times + 1) * length : -times * length] == last:
            times += 1
        best = max(best, times)
    return best


class RepeatedPhrase:
    """Notices the same few words, or the same symbol, again and again, within a sentence too."""

    def __init__(self) -> None:
        self._tail = ""
        self._level = 0

    def level(self, text: str) -> int:
        """Take in text: 1 or 2 where it has just become as much as `PHRASE_REPEATS` says, or 0."""
        self._tail = (self._tail + text)[-PERIOD * (PHRASE_REPEATS[1][0] + 1) :]
        before, self._level = self._level, self._found()
        return self._level if self._level > before else 0

    def _found(self) -> int:
        tail = self._tail
        last = tail[-_SEEN:]
        again = tail.rfind(last, 0, len(tail) - 1)
        if len(last) < _SEEN or again < 0:
            return 0
        period = len(tail) - _SEEN - again
        phrase = tail[-period:]
        if period > PERIOD or (phrase.isascii() and not any(map(str.isalnum, phrase))):
            return 0  # a line of dashes
        run = period
        while run < len(tail) and tail[-1 - run] == tail[-1 - run + period]:
            run += 1
        return sum(
            run >= times * period and run >= characters for times, characters in PHRASE_REPEATS
        )
