"""The device's rule of where a word ends is `Word`'s, over every token and every way of cutting
characters into tokens."""

from __future__ import annotations

import codecs
import random
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engines.vllm.words import CLOSED, State, Words
from server.text.words import Part, Word

CHARS = ["a", ".", " ", "\n", "\t", "\u00a0", "\u3000", "é", "語", "。", "ไ", "😀", "𠀀", "\u2003"]
PIECES = [
    *(char.encode() for char in CHARS),
    *(bytes([byte]) for char in CHARS for byte in char.encode()),
    *((one + two).encode() for one in CHARS for two in CHARS),
    *("語".encode()[:2], "語".encode()[2:] + b"a", b" a" + "語".encode()[:1], "😀".encode()[:3]),
    *("😀".encode()[1:], "a語".encode()[:3], "\u3000".encode()[:2], b"\x80 b", b"", b"\xff"),
]
TABLE = list(dict.fromkeys(PIECES))


class Bytes:
    """What `Word` asks of a tokenizer."""

    def token_bytes(self, token: int) -> bytes:
        return TABLE[token]

    def decoder(self) -> Any:
        return Decoder()


class Decoder:
    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def pending(self) -> int:
        return len(self._utf8.getstate()[0])

    def push(self, token: int) -> str:
        return self._utf8.decode(TABLE[token])


WORDS = Words(TABLE, len(TABLE) + 3, torch.device("cpu"))


IDS = {data: number for number, data in enumerate(TABLE)}


def cut(text: str, choose: random.Random) -> list[int]:
    """A text as tokens, some of which are parts of characters."""
    data, found = text.encode(), []
    while data:
        found.append(IDS[choose.choice([each for each in TABLE if each and data.startswith(each)])])
        data = data[len(TABLE[found[-1]]) :]
    return found


tokens = st.builds(
    cut,
    st.lists(st.sampled_from(CHARS), min_size=1, max_size=5).map("".join),
    st.randoms(use_true_random=False),
)


@given(st.lists(tokens, min_size=1, max_size=5), st.integers(0, 3))
def test_it_is_the_same_rule(rows: list[list[int]], begun: int):
    states = torch.tensor([WORDS.begun(row[:begun]) for row in rows], dtype=torch.int32)
    words = [Word(Bytes(), row[:begun]) for row in rows]  # type: ignore[arg-type]
    over = [False] * len(rows)
    for at in range(begun, max(map(len, rows))):
        alive = [number for number, row in enumerate(rows) if len(row) > at]
        if not alive:
            return
        pushed = torch.tensor([row[at] if len(row) > at else 0 for row in rows])
        states = WORDS.push(states, pushed)
        told = State.unpacked(states)
        for number in alive:
            if over[number] or _ended_in(rows[number][:begun]):
                continue
            word = words[number]
            over[number] = word.push(rows[number][at]) is not Part.INSIDE
            assert bool(told.complete[number]) == over[number]
            if not over[number]:
                assert bool(told.need[number] > 0) == word.inside_character
                if not word.inside_character:
                    assert bool(told.open[number]) == word.open


def _ended_in(tokens: list[int]) -> bool:
    """Whether what was begun is a whole word already, which no turn begins with."""
    word = Word(Bytes())  # type: ignore[arg-type]
    return any(word.push(token) is not Part.INSIDE for token in tokens)


def test_what_begins_with_a_space():
    found = WORDS.starts_with_space(torch.arange(len(TABLE) + 3)).tolist()
    assert found[TABLE.index(b" ")]
    assert found[TABLE.index("\u3000".encode())]
    assert not found[TABLE.index(b"a")]
    assert found[len(TABLE) :] == [False] * 3
    assert WORDS.begun([]) == list(CLOSED)


def test_bytes_that_are_no_text_are_a_character():
    for broken in (b"\x80 b", b"\xff"):
        state = State.unpacked(torch.tensor([WORDS.begun([TABLE.index(broken)])]))
        assert bool(state.open[0])
