"""Whether a text goes round in circles, and how much of it is a third round.

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
"""Bytes of letters and digits of what counts each time that it comes. Of less, as much has to come:
"Yes." four times counts once. What has none ("}", "| - | - |") never does."""

PERIOD = 80
"""Characters of a phrase, at most."""

PHRASE_REPEATS = (3, 48), (4, 72)
"""How often a phrase comes, and in how many characters, to be told of: once, and again."""

_SEEN = 24  # characters by which a phrase is found again
_AGAIN = 12  # and by which one that comes again is seen coming
_NUMBER = re.compile(r"\s*\d{1,3}[.)]\s")  # of a list's item, which may come again under another
_NUMBERED = re.compile(r"\s*\d{1,3}[.)]?\s*")  # and nothing behind it yet
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
    """Counts how often the same sentences or lines, up to `CYCLE` of them, come in a row. The number
    of a list's item is none."""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._ends: list[int] = []  # how many characters the text had behind each
        self._begun = ""
        self._length = 0  # of the text
        self._found = 0
        self._told = 0  # sentences that were told of, the one begun among them

    def times(self, text: str) -> int:
        """Take in text: how often what has just come to an end came in a row, 1 if once; 0 where
        nothing has, or nothing that counts."""
        found = 0
        # A break is seen from the character in front of it; what was read before that has none.
        seen = self._begun[-1:] + text
        before = self._length - len(self._begun[-1:])
        self._length += len(text)
        sentence, start = self._begun[:-1], 0
        for each in _BREAK.finditer(seen):
            sentence += seen[start : each.start()]
            found = max(found, self._ended(sentence, before + each.start()))
            sentence, start = "", each.end()
        self._begun = sentence + seen[start:]
        if self._begun.endswith(_ENDS):  # "3." of "3.5" may be one too, for now
            found = max(found, self._ended(self._begun))
        self._found = found
        return found

    @property
    def coming(self) -> int:
        """How many characters at the text's end come round the third time, as far as they go.
        None where nobody ended that round."""
        most, shorter = 0, 0
        for length in range(1, min(CYCLE, len(self._sentences) // 2) + 1):
            run = _run(self._sentences, length)
            again = run - 2 * length
            if again < 0 or (shorter and length % shorter == 0):
                continue
            shorter = shorter or length
            rounds = -(-3 * SHORTEST // min(SHORTEST, _size(self._sentences[-length:])))
            left = rounds * length - run
            if self._found == 3 or self._goes_on(self._sentences[-length], left):
                most = max(most, self._length - self._ends[-1 - again])
        return most

    def _goes_on(self, sentence: str, left: int) -> bool:
        """Whether the sentence that was begun may become that one, as far as it goes. left: of
        those that may come before somebody ends the answer."""
        begun = self._begun
        if not begun.strip() or _NUMBERED.fullmatch(begun):
            return left >= 0
        return (
            left > 0
            and len(begun) <= 8 * len(sentence)  # white space and marks don't count
            and sentence.startswith(_letters(begun))
        )

    def _ended(self, sentence: str, at: int | None = None) -> int:
        """``at``: where, if it is whole."""
        letters = "" if _NUMBERED.fullmatch(sentence) else _letters(sentence)
        if not letters:
            return 0
        sentences = [*self._sentences[1 - 8 * CYCLE :], letters]
        if at is not None:
            self._sentences.append(letters)
            self._ends.append(at)
        number = len(self._sentences) + (at is None)
        if number <= self._told:
            return 0
        times = max(
            _run(sentences, length)
            // length
            * min(SHORTEST, _size(sentences[-length:]))
            // SHORTEST
            for length in range(1, CYCLE + 1)
        )
        if at is not None or times > 1:
            self._told = number
        return times


def _letters(sentence: str) -> str:
    """What of a sentence counts."""
    numbered = _NUMBER.match(sentence)
    sentence = sentence[numbered.end() :] if numbered else sentence
    return "".join(filter(str.isalnum, sentence)).casefold()


def _size(sentences: Sequence[str]) -> int:
    return sum(len(letters.encode()) for letters in sentences)


def _run(sentences: Sequence[str], length: int) -> int:
    """How many of the last ones come round after so many, of not too many."""
    count = min(len(sentences), 8 * CYCLE)
    run = min(length, count)
    while run < count and sentences[-1 - run] == sentences[-1 - run + length]:
        run += 1
    return run


class RepeatedPhrase:
    """Notices the same few words, or the same symbol, again and again, within a sentence too."""

    def __init__(self) -> None:
        self._tail = ""
        self._level = self._before = 0

    def level(self, text: str) -> int:
        """Take in text: 1 or 2 where it has just become as much as `PHRASE_REPEATS` says, or 0."""
        self._tail = (self._tail + text)[-PERIOD * (PHRASE_REPEATS[1][0] + 1) :]
        self._before, self._level = self._level, self._found()
        return self._level if self._level > self._before else 0

    @property
    def coming(self) -> int:
        """How many characters at the text's end come after two rounds of a phrase. None where
        nobody ended the fourth."""
        if self._before == len(PHRASE_REPEATS):
            return 0
        period, run = self._round(_AGAIN)
        again = max(0, run - 2 * period)
        # The rounds that are found may begin with the full stop in front of the first.
        while again and self._tail[-again] in _ENDS:
            again -= 1
        return again

    def _found(self) -> int:
        period, run = self._round(_SEEN)
        return sum(
            run >= max(1, times * period) and run >= characters
            for times, characters in PHRASE_REPEATS
        )

    def _round(self, seen: int) -> tuple[int, int]:
        """The length of the phrase that the text ends with rounds of, found by its last characters,
        and of all of them; 0 and 0 where there is none."""
        tail = self._tail
        last = tail[-seen:]
        again = tail.rfind(last, 0, len(tail) - 1)
        if len(last) < seen or again < 0:
            return 0, 0
        period = len(tail) - seen - again
        phrase = tail[-period:]
        if period > PERIOD or (phrase.isascii() and not any(map(str.isalnum, phrase))):
            return 0, 0  # a line of dashes
        run = period
        while run < len(tail) and tail[-1 - run] == tail[-1 - run + period]:
            run += 1
        return period, run


class ThirdRounds:
    """How much of a text is to wait, for it may be the third round of something, which ends an
    answer (`server.decoding.rules`)."""

    def __init__(self) -> None:
        self._sentences = RepeatedSentences()
        self._phrase = RepeatedPhrase()

    def push(self, text: str) -> int:
        """Take in text: how many characters at its end that are."""
        self._sentences.times(text)
        self._phrase.level(text)
        return max(self._sentences.coming, self._phrase.coming)
