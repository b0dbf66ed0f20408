"""What a request's own wishes do to a position's logits, inside vLLM's engine process.

Knows: grammars, ``logit_bias``, penalties, and tokens that must not come yet, over all that a
session holds after its prompt. vLLM's own penalties and structured output see one request, which
here is one turn of an answer. Does not know: batches, the policy, HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from server.core import Grammar
from server.text.grammar.follow import Follower, Vocabulary, closes

_KEPT = 256
"""Answers whose place in their grammar is remembered between turns, at some 100 KiB each. One that
was forgotten is followed from its beginning again."""

_COMPILED = 32
"""Grammars that are kept as they are at their beginning."""


class Followers:
    """The grammars of the answers that an engine takes part in.

    An answer's turns are requests of their own. Where it was in its grammar is kept for the next
    one, so that a turn costs what it writes and not what was written before.
    """

    def __init__(self, vocabulary: Callable[[Sequence[int]], Vocabulary]) -> None:
        self._make_vocabulary = vocabulary
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[str, tuple[Grammar, Follower]] = OrderedDict()
        self._compiled: OrderedDict[Grammar, Follower] = OrderedDict()
        self._closing: torch.Tensor | None = None

    def get(self, session: str, grammar: Grammar, ends: Sequence[int]) -> Follower:
        before, follower = self._kept.pop(session, (None, None))
        if follower is None or before != grammar:
            follower = self._begin(grammar, ends)
        self._kept[session] = (grammar, follower)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return follower

    def _begin(self, grammar: Grammar, ends: Sequence[int]) -> Follower:
        """A follower at the beginning. Compiling may take a good part of a second, which every
        answer of the engine waits for, so a grammar that was compiled lately is copied."""
        first = self._compiled.pop(grammar, None)
        if first is None:
            if self._vocabulary is None:
                self._vocabulary = self._make_vocabulary(ends)
            first = Follower(grammar, self._vocabulary)
        self._compiled[grammar] = first
        if len(self._compiled) > _COMPILED:
            self._compiled.popitem(last=False)
        return first.copy()

    def closing(self, kept: torch.Tensor) -> torch.Tensor:
        """Of the tokens that may come (bool[V]) those that only close what is open. Where a letter
        may come a string is open: nothing but a quote closes that, a bracket is its text."""
        if self._closing is None:
            assert self._vocabulary is not None
            table = self._vocabulary.table[: len(kept)]
            closing = [number for number, token in enumerate(table) if closes(token)]
            quoting = [number for number in closing if table[number].startswith(b'"')]
            letters = [table.index(b"a")] if b"a" in table else []
            self._closing = torch.zeros(3, len(kept), dtype=torch.bool, device=kept.device)
            for row, numbers in zip(self._closing, (closing, quoting, letters), strict=True):
                row[numbers] = True
        every, quotes, letter = kept & self._closing
        return quotes if bool(letter.any()) else every


class Adjustment:
    """One request's. ``SamplingParams.extra_args["nudge_adjust"]``, whose keys are

    output_from   where in the request's prompt the answer begins
    bias          [token id, bias] to add
    penalties     presence, frequency, repetition
    not_before    [token id, n]: can't be drawn among the request's first n tokens
    grammar, begun, session, ends   the grammar, what was begun of its text, whose answer it is, and
                  what may end it
    """

    def __init__(
        self,
        args: dict[str, Any],
        prompt: Sequence[int],
        output: list[int],
        followers: Followers,
        size: int,
        device: torch.device,
    ) -> None:
        self._output = output  # the request's own list, which grows
        self._before = list(prompt[args["output_from"] :])
        self._device = device
        self._followers = followers
        self._follower: Follower | None = None
        if "grammar" in args:
            grammar = Grammar(args["grammar"], args["begun"])
            self._follower = followers.get(args["session"], grammar, args["ends"])
        self._ends = list(args.get("ends", ()))
        self._bias = _pairs(args["bias"], device)
        self._not_before: list[tuple[int, int]] = [tuple(each) for each in args["not_before"]]
        self._penalties: _Penalties | None = None
        if "penalties" in args:
            self._penalties = _Penalties(args["penalties"], prompt, self._before, size, device)

    def mask(self, row: torch.Tensor) -> bool:
        """Leave what the grammar allows; whether there is a grammar."""
        if self._follower is None:
            return False
        ending = int(row.argmax()) in self._ends
        allowed = self._follower.allowed_after(self._before + self._output)
        if allowed is None:
            # The server sees that the answer is not what it should be, and says so.
            kept = torch.zeros(len(row), dtype=torch.bool, device=self._device)
            kept[self._ends] = True
        else:
            kept = _bits(allowed, len(row)).to(self._device)
            if ending and not bool(kept[self._ends].any()):
                closing = self._followers.closing(kept)
                kept = closing if bool(closing.any()) else kept
        row.masked_fill_(~kept, -torch.inf)
        return True

    def bend(self, row: torch.Tensor) -> None:
        """Add the bias, take off the penalties, rule out what must not come yet."""
        if self._bias is not None:
            ids, values = self._bias
            row[ids] += values
        if self._penalties is not None:
            self._penalties.take_off(row, self._output)
        written = len(self._output)
        early = [token for token, count in self._not_before if written < count]
        if early:
            kept = row[early]
            row[early] = -torch.inf
            if self._follower is not None and not bool((row > -torch.inf).any()):
                row[early] = kept  # the grammar allows nothing but the end


class _Penalties:
    """Presence, frequency and repetition penalties; the first two over the answer so far."""

    def __init__(
        self,
        penalties: Sequence[float],
        prompt: Sequence[int],
        before: Sequence[int],
        size: int,
        device: torch.device,
    ) -> None:
        self._presence, self._frequency, self._repetition = penalties
        self._seen = 0
        counts = torch.bincount(torch.tensor(before, dtype=torch.int64), minlength=size)
        self._counts = counts[:size].to(device, torch.float32)
        self._read = torch.zeros(size, dtype=torch.bool, device=device)
        self._read[torch.tensor(prompt, dtype=torch.int64, device=device)] = True

    def take_off(self, row: torch.Tensor, output: Sequence[int]) -> None:
        for token in output[self._seen :]:
            self._counts[token] += 1
            self._read[token] = True
        self._seen = len(output)
        if self._repetition != 1:
            scaled = torch.where(row > 0, row / self._repetition, row * self._repetition)
            row.copy_(torch.where(self._read, scaled, row))
        row -= self._frequency * self._counts + self._presence * (self._counts > 0)


def _pairs(
    pairs: Sequence[Sequence[float]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    if not pairs:
        return None
    ids = torch.tensor([int(pair[0]) for pair in pairs], device=device)
    return ids, torch.tensor([float(pair[1]) for pair in pairs], device=device)


def _bits(mask: bytes, size: int) -> torch.Tensor:
    """One boolean a token."""
    packed = torch.frombuffer(bytearray(mask), dtype=torch.uint8)
    bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    flat = bits.flatten().bool()[:size]
    return torch.nn.functional.pad(flat, (0, size - len(flat)))
