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

CLOSED = (0, 0)
"""The state before a word's first token; see `State`."""


class State(NamedTuple):
    """Of a word each, as columns.

    open: a whole non-whitespace character has been seen. ended: an end was, though the character
    after it may be under way. need: bytes that the character under way still wants. value: what it
    is so far. complete: the word is, and no later token is a part of it.

    Packed it is two numbers: all but the value as bits (``_OPEN`` and so on), and the value.
    """

    open: torch.Tensor
    ended: torch.Tensor
    need: torch.Tensor
    value: torch.Tensor
    complete: torch.Tensor

    @classmethod
    def unpacked(cls, states: torch.Tensor) -> State:
        bits, value = states.unbind(-1)
        opened, ended, complete = (bits & each > 0 for each in (_OPEN, _ENDED, _COMPLETE))
        return cls(opened, ended, bits >> _NEED & 3, value, complete)


_OPEN, _ENDED, _COMPLETE, _NEED = 1, 2, 4, 3
_STATES = 32
"""Of the bits; ``need`` is two of them, ``_NEED`` of them lower."""


class _Tables(NamedTuple):
    """tokens: `_row` of each id. The others: the functions of their names."""

    tokens: torch.Tensor
    shifts: torch.Tensor
    kinds: torch.Tensor
    following: torch.Tensor


class Words:
    """The rule over one vocabulary.

    What follows of a state's bits, a token's, and the kind of a character is looked up, since a
    device starts each operation on its own, and there is a step's time for few.
    """

    def __init__(self, table: Sequence[bytes], size: int, device: torch.device) -> None:
        """``table``: the bytes of each id. ``size``: of the model's vocabulary."""
        rows = [_row(data) for data in table[:size]]
        rows += [_row(b"")] * (size - len(rows))
        tokens = torch.tensor(rows, dtype=torch.int32)
        self._host = _Tables(tokens, _shifts(), _kinds(), _following())
        self._on_device = _Tables(*(each.to(device) for each in self._host))

    def starts_with_space(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._on_device.tokens[tokens, 0] & _SPACE_FIRST > 0

    def begun(self, tokens: Sequence[int]) -> list[int]:
        """The state of a word after these tokens, on the host."""
        states = torch.tensor([CLOSED], dtype=torch.int32)
        for token in tokens:
            states = _push(self._host, states, torch.tensor([token]))
        found: list[int] = states[0].tolist()
        return found

    def push(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The states after one more token each, on the device."""
        return _push(self._on_device, states, tokens)

    def between(self, states: torch.Tensor) -> torch.Tensor:
        """Whether each word is open, and no character under way: it ends where a space follows."""
        return states[..., 0] & (_OPEN | 3 << _NEED) == _OPEN

    def complete(self, states: torch.Tensor) -> torch.Tensor:
        return states[..., 0] & _COMPLETE > 0


# -- a token's bits ------------------------------------------------------------------------------

_ALONE, _SPACE_FIRST, _OPENS, _ENDS_CLOSED, _ENDS_OPEN, _LEAD, _WANTS = 1, 2, 4, 8, 16, 5, 7
_TOKENS = 512
"""Of the bits; ``lead`` and ``need`` are two each, so many lower."""


def _row(data: bytes) -> tuple[int, int, int]:
    """Of a token: its bits, ``bits`` and ``value``. Its bytes are: some that go on with a character
    under way (``lead`` of them, whose bits are ``bits``; alone: nothing else is there), then whole
    characters, then the beginning of one (which wants ``need`` more, and is ``value`` so far)."""
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
    flags = (
        _ALONE * (lead == len(data))
        | _SPACE_FIRST * first_char(data).isspace()
        | _OPENS * bool(inner)
        | _ENDS_CLOSED * (spaceless or bool(re.search(r"\s", inner)))
        | _ENDS_OPEN * (spaceless or bool(re.search(r"\s", text)))
        | lead << _LEAD
        | need << _WANTS
    )
    return flags, bits, value


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
    """Of each character, at ``_following``'s place for it."""
    kinds = torch.zeros(0x110000, dtype=torch.int32)
    for code in range(0x110000):
        char = chr(code)
        if char.isspace():
            kinds[code] = _SPACE
    for found in SPACELESS.finditer("".join(map(chr, range(0x110000)))):
        kinds[found.start()] = _SPACELESS
    return kinds * (_TOKENS * _STATES)


def _push(tables: _Tables, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    before, value = states.unbind(-1)
    token, bits, begun = tables.tokens[tokens].unbind(-1)
    at = token * _STATES + before
    left, right = tables.shifts[at].unbind(-1)
    value = value << left | bits >> right
    kind = tables.kinds[value.clamp(0, 0x10FFFF)]
    after, goes_on = tables.following[kind + at].unbind(-1)
    return torch.stack([after, torch.where(goes_on > 0, value, begun)], -1)


def _all() -> tuple[torch.Tensor, torch.Tensor]:
    """Every token's bits and every state's, a state's the lower ones."""
    at = torch.arange(_TOKENS * _STATES, dtype=torch.int32)
    return at // _STATES, at % _STATES


def _shifts() -> torch.Tensor:
    """By token and state: by how many bits the character under way makes room for the token's, and
    how many of these are none of it."""
    token, before = _all()
    lead, need = token >> _LEAD & 3, before >> _NEED & 3
    taken = torch.minimum(lead, need)
    return torch.stack([6 * taken, 6 * (lead - taken)], -1)


def _following() -> torch.Tensor:
    """By the kind of the character under way, token and state: the state's bits behind the token,
    and whether that character still goes on."""
    found = []
    token, before = _all()
    lead, wants = token >> _LEAD & 3, token >> _WANTS & 3
    alone, space, opens, ends_closed, ends_open = (
        token & each > 0 for each in (_ALONE, _SPACE_FIRST, _OPENS, _ENDS_CLOSED, _ENDS_OPEN)
    )
    state = State.unpacked(torch.stack([before, torch.zeros_like(before)], -1))
    under_way = state.need > 0
    beyond = ~under_way & state.open & space

    # The character under way: it is finished, goes on, or was none.
    goes_on = under_way & (lead < state.need) & alone
    finished = under_way & (lead >= state.need)
    broken = ~goes_on & (lead > state.need) | under_way & ~goes_on & ~finished
    for kind in (0, _SPACE, _SPACELESS):
        ends = kind == _SPACELESS or state.open & (kind == _SPACE)
        ended = state.ended | finished & ends
        opened = state.open | finished & (kind != _SPACE) | broken

        # What comes behind it.
        ended = ended | torch.where(opened, ends_open, ends_closed)
        opened = opened | opens
        need = torch.where(goes_on, state.need - lead, wants)
        complete = state.complete | beyond | ended & (need == 0)
        bits = opened * _OPEN | ended * _ENDED | complete * _COMPLETE | need << _NEED
        found.append(torch.stack([bits, goes_on], -1))
    return torch.cat(found).to(torch.int32)
