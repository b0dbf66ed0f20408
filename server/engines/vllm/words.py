"""Words as tensors: where one ends, for many requests at once, without asking what a token was.

`server.text.words.Word` says what a word is; this is the same rule as a table over the vocabulary,
for a device that has the tokens when the host doesn't yet. Does not know: vLLM, batches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from server.text.vocabulary import first_char
from server.text.words import SPACELESS

_SPACE, _SPACELESS = 1, 2

CLOSED = (0, 0, 0, 0, 0)
"""The state before a word's first token; see `State`."""


class State(NamedTuple):
    """Of a word each, as columns.

    open: a whole non-whitespace character has been seen. ended: an end was, though the character
    after it may be under way. need: bytes that the character under way still wants. value: what it
    is so far. complete: the word is, and no later token is a part of it.
    """

    open: torch.Tensor
    ended: torch.Tensor
    need: torch.Tensor
    value: torch.Tensor
    complete: torch.Tensor

    def packed(self) -> torch.Tensor:
        return torch.stack([column.to(torch.int32) for column in self], -1)

    @classmethod
    def unpacked(cls, states: torch.Tensor) -> State:
        opened, ended, need, value, complete = states.unbind(-1)
        return cls(opened > 0, ended > 0, need, value, complete > 0)


class Words:
    """The rule over one vocabulary."""

    def __init__(self, table: Sequence[bytes], size: int, device: torch.device) -> None:
        """``table``: the bytes of each id. ``size``: of the model's vocabulary."""
        rows = [_row(data) for data in table[:size]]
        rows += [_row(b"")] * (size - len(rows))
        self._tokens = torch.tensor(rows, dtype=torch.int32)
        self._kinds = _kinds()
        self._on_device = self._tokens.to(device), self._kinds.to(device)

    def starts_with_space(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._on_device[0][tokens, _Row.space] > 0

    def begun(self, tokens: Sequence[int]) -> list[int]:
        """The state of a word after these tokens, on the host."""
        states = torch.tensor([CLOSED], dtype=torch.int32)
        for token in tokens:
            states = _push(self._tokens, self._kinds, states, torch.tensor([token]))
        found: list[int] = states[0].tolist()
        return found

    def push(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The states after one more token each, on the device."""
        return _push(*self._on_device, states, tokens)


class _Row:
    """Columns of a token. Its bytes are: some that go on with a character under way (``lead`` of
    them, whose bits are ``bits``; ``alone``: nothing else is there), then whole characters, then
    the beginning of one (which wants ``need`` more, and is ``value`` so far)."""

    lead, bits, alone, space, opens, ends_closed, ends_open, need, value = range(9)


def _row(data: bytes) -> tuple[int, ...]:
    lead = 0
    while lead < min(3, len(data)) and data[lead] & 0xC0 == 0x80:
        lead += 1
    bits = 0
    for byte in data[:lead]:
        bits = bits << 6 | byte & 0x3F
    need, value, whole = _tail(data[lead:])
    text = whole.decode("utf-8", "replace")
    inner = text.lstrip()
    spaceless = bool(SPACELESS.search(text))
    return (
        lead,
        bits,
        lead == len(data),
        first_char(data).isspace(),
        bool(inner),
        spaceless or bool(re.search(r"\s", inner)),
        spaceless or bool(re.search(r"\s", text)),
        need,
        value,
    )


def _tail(data: bytes) -> tuple[int, int, bytes]:
    """The character that bytes end in the middle of: how many it wants, its value, and the bytes
    before it."""
    for have in range(1, min(3, len(data)) + 1):
        first = data[-have]
        if first & 0xC0 == 0x80:
            continue
        length = 2 if 0xC2 <= first < 0xE0 else 3 if first & 0xF0 == 0xE0 else 4
        if first < 0xC2 or first > 0xF4 or have >= length:
            break
        value = first & (0xFF >> (length + 1))
        for byte in data[len(data) - have + 1 :]:
            value = value << 6 | byte & 0x3F
        return length - have, value, data[:-have]
    return 0, 0, data


def _kinds() -> torch.Tensor:
    kinds = torch.zeros(0x110000, dtype=torch.int8)
    for code in range(0x110000):
        char = chr(code)
        if char.isspace():
            kinds[code] = _SPACE
    for found in SPACELESS.finditer("".join(map(chr, range(0x110000)))):
        kinds[found.start()] = _SPACELESS
    return kinds


def _push(
    table: torch.Tensor, kinds: torch.Tensor, states: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    before, token = State.unpacked(states), table[tokens].unbind(-1)
    lead, alone = token[_Row.lead], token[_Row.alone] > 0
    under_way = before.need > 0
    beyond = ~under_way & before.open & (token[_Row.space] > 0)

    # The character under way: it is finished, goes on, or was none.
    taken = torch.minimum(lead, before.need)
    value = (before.value << (6 * taken)) | (token[_Row.bits] >> (6 * (lead - taken)))
    goes_on = under_way & (lead < before.need) & alone
    finished = under_way & (lead >= before.need)
    broken = ~goes_on & (lead > taken) | under_way & ~goes_on & ~finished
    kind = kinds[value.clamp(0, 0x10FFFF)]
    ended = before.ended | finished & ((kind == _SPACELESS) | before.open & (kind == _SPACE))
    opened = before.open | finished & (kind != _SPACE) | broken

    # What comes behind it.
    ended = ended | torch.where(opened, token[_Row.ends_open], token[_Row.ends_closed]) > 0
    opened = opened | (token[_Row.opens] > 0)
    need = torch.where(goes_on, before.need - lead, token[_Row.need])
    value = torch.where(goes_on, value, token[_Row.value])
    complete = before.complete | beyond | ended & (need == 0)
    return State(opened, ended, need, value, complete).packed()
