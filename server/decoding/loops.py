"""Whether a text goes round in circles, and how much of it is a third round.

Knows: tokens and texts. Does not know: whose they are, and what comes of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

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
_NO_WORD = re.compile(r"(?<!\w)|(?!\w)")  # the inside of one isn't it
_MARK = re.compile(rf"[.!?{_WIDE}\n]")
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
    """Counts how often the same sentences or lines, up to `CYCLE` of them, come in a row. (A list
    item's number is none.)"""

    def __init__(self) -> None:
        self._sentences: list[str] = []
        self._ends: list[int] = []  # how many characters the text had behind each
        self._begun = ""
        self._length = 0  # of the text
        self._found = 0
        self._rounds: list[tuple[int, int, str]] = []
        self._told = 0  # sentences that were told of, the one begun among them

    def times(self, text: str) -> int:
        """Take in text: how often what has just come to an end came in a row, 1 if once; 0 where
        nothing has, or nothing that counts."""
        found = self._found = 0
        if not (_MARK.search(text) or self._begun.endswith(_ENDS)):
            self._begun += text
            self._length += len(text)
            return 0
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
        most = 0
        for again, left, sentence in self._rounds:
            if self._found == 3 or self._goes_on(sentence, left):
                most = max(most, self._length - self._ends[-1 - again])
        return most

    def _third_rounds(self) -> Iterator[tuple[int, int, str]]:
        """Of each cycle that has come twice: how many sentences of more rounds there are, how many
        may come before somebody ends the answer, and the next one."""
        sentences, shorter = self._sentences, 0
        for length in range(1, min(CYCLE, len(sentences) // 2) + 1):
            run = _run(sentences, length)
            if run >= 2 * length and not (shorter and length % shorter == 0):
                shorter = shorter or length
                rounds = -(-3 * SHORTEST // min(SHORTEST, _size(sentences[-length:])))
                yield run - 2 * length, rounds * length - run, sentences[-length]

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
        comes_again = letters in self._sentences[-CYCLE:]
        sentences = [*self._sentences[1 - 8 * CYCLE :], letters] if comes_again else []
        if at is not None:
            self._sentences.append(letters)
            self._ends.append(at)
            self._rounds = list(self._third_rounds()) if comes_again else []
        number = len(self._sentences) + (at is None)
        if number <= self._told:
            return 0
        times = max(_times(sentences, length) for length in range(1, CYCLE + 1))
        if at is not None or times > 1:
            self._told = number
        return max(times, int(len(letters.encode()) >= SHORTEST))


def _letters(sentence: str) -> str:
    """What of a sentence counts."""
    numbered = _NUMBER.match(sentence)
    sentence = sentence[numbered.end() :] if numbered else sentence
    return "".join(filter(str.isalnum, sentence)).casefold()


def _times(sentences: Sequence[str], length: int) -> int:
    """How often the last ones came in a row, short ones as much less as they are shorter."""
    whole = min(SHORTEST, _size(sentences[-length:]))
    return _run(sentences, length) // length * whole // SHORTEST


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
        self._near = 0  # a period by few characters, if any

    def level(self, text: str) -> int:
        """Take in text: 1 or 2 where it has just become as much as `PHRASE_REPEATS` says, or 0."""
        self._tail = (self._tail + text)[-PERIOD * (PHRASE_REPEATS[1][0] + 1) :]
        self._before, self._level = self._level, 0
        self._near = self._period(_AGAIN)
        if self._near and (period := self._period(_SEEN)):
            run = self._run(period)
            for times, characters in PHRASE_REPEATS:
                self._level += run >= max(1, times * period) and run >= characters
        return self._level if self._level > self._before else 0

    @property
    def coming(self) -> int:
        """How many characters at the text's end come after two rounds of a phrase, from the next
        end of a sentence on, or else not from within a word: a round may be found to begin
        anywhere. None where nobody ended the fourth."""
        period, tail = self._near, self._tail
        if not period or self._before == len(PHRASE_REPEATS):
            return 0
        third = len(tail) - self._run(period) + 2 * period
        for end in (_BREAK, _NO_WORD):
            found = end.search(tail, third - period)
            if found and found.start() < third:
                third = found.start() + period
                break
        return max(0, len(tail) - third)

    def _period(self, seen: int) -> int:
        """How long ago the text ended as it does, by so many characters; 0 where it didn't."""
        tail = self._tail
        nearest = len(tail) - seen
        again = tail.rfind(tail[-seen:], max(0, nearest - PERIOD), len(tail) - 1)
        return nearest - again if again >= 0 and nearest > 0 else 0

    def _run(self, period: int) -> int:
        """How many characters at the text's end are rounds of its last ones; 0 of a line of dashes,
        or the like."""
        tail = self._tail
        phrase = tail[-period:]
        if phrase.isascii() and not any(map(str.isalnum, phrase)):
            return 0
        run = period
        while run < len(tail) and tail[-1 - run] == tail[-1 - run + period]:
            run += 1
        return run


class ThirdRounds:
    """How much of a text is to wait, for it may be the third round of something, which ends an
    answer (`server.decoding.rules`)."""

    def __init__(self) -> None:
        self._sentences = RepeatedSentences()
        self._phrase = RepeatedPhrase()
        self._coming = 0

    def push(self, text: str) -> int:
        """Take in text: how many characters at its end that are."""
        if text:  # what has none (special tokens) changes nothing
            self._sentences.times(text)
            self._phrase.level(text)
            self._coming = max(self._sentences.coming, self._phrase.coming)
        return self._coming
