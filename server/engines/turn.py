"""When a turn ends: the one place that says so.

Without I/O, in the manner of h11: whoever runs a turn offers each token that its model would write,
in order, to a `Turn`, which says whether it is taken and how the turn ended, if it did. An engine
may have ended it by itself, inside; what it wanted to write there is offered all the same.

The rules, in their order; the first that holds ends the turn:

1. ``uncertain``  p1 < ``stop_below``
2. ``stop``       the token ends the model's text (one of the engine's ``stop_ids``, or of the
                  turn's ``ends``)
3. ``word``       the word had ended before the token
4. ``stop``       the token is one of the request's ``stop_token_ids``

Where none holds, the token is taken. Then it may be the last:

5. ``word``       it completes the word
6. ``length``     ``max_tokens`` are taken, or the context is full

So doubt comes before everything: base or not, an end that the model isn't sure of is no end. The
model's own end comes before the word's, for no other word follows it; one of the request's stop
tokens comes behind it, for it would have begun the next word, which somebody else may write.

Does not know: where tokens come from, engines, the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from server.engines.base import EndReason, Token, TurnEnd, TurnParams
from server.text.tokenizer import Tokenizer
from server.text.words import Part


class Turn:
    """One turn, as far as it has come.

    end: how it ended; None while it goes on. taken: the tokens taken so far.
    """

    def __init__(
        self, params: TurnParams, tokenizer: Tokenizer, stop_ids: tuple[int, ...], room: int
    ) -> None:
        """
        Args:
            stop_ids: tokens that end the model's text.
            room: ids that the context has room for. Without any the turn has ended already.
        """
        self.params = params
        self.stop_ids = stop_ids
        self.taken: list[int] = []
        self.end: TurnEnd | None = None
        self.part = Part.INSIDE  # what the token offered last is to the word
        self._word = params.word_with(tokenizer)
        self._most = min(params.max_tokens, room)
        if self._most <= 0:
            self.end = TurnEnd("length")

    def offer(self, token: Token, p1: float | None = None, *, ended: bool = False) -> bool:
        """The model's next token. Whether it is taken; `end` says whether the turn goes on.

        Args:
            p1: the position's, where it isn't the token's ``top_prob``: with a grammar.
            ended: whether the engine ended the turn by itself here. Then the token isn't taken;
                where no rule says so, the engine saw a word end that isn't seen from here.
        """
        if self.end is not None:
            raise RuntimeError("the turn had ended before this token")
        if p1 is None:
            p1 = token.top_prob
        for reason, holds in BEFORE:
            if holds(self, token.id, p1):
                self.end = TurnEnd(reason, likeliest(token) if reason == "uncertain" else token)
                return False
        if ended:
            self.end = TurnEnd("word")
            return False
        self.taken.append(token.id)
        for reason, holds in AFTER:
            if holds(self, token.id, p1):
                self.end = TurnEnd(reason)
                break
        return True

    def offer_stopped(self, last: Token) -> None:
        """A stop token ended the turn in the engine: the model's own, or one that the stop
        processor forced. What the model wanted there is offered.

        A sampled word is ended by whoever runs the turn, who sees the tokens before the processor
        forces anything; a stop token that arrives then was drawn.
        """
        params = self.params
        if params.stop_below is not None:
            # With a grammar p1 is not seen here. Base or not, its end and its doubt are one event.
            doubt = params.grammar is not None and last.id in self.stop_ids
            self.offer(last, -math.inf if doubt else None, ended=True)
        elif params.word is not None and params.by_argmax:
            wanted = likeliest(last)
            self.offer(wanted, ended=True)
            tied = len(last.top) > 1 and last.top[0][1] == last.top[1][1]
            assert self.end is not None
            if tied and self.end.reason == "word" and wanted.id not in params.stop_token_ids:
                self.end = TurnEnd("word")  # the engine's choice may have been the other one
        else:
            self.offer(last, ended=True)

    def rest(self) -> TurnParams:
        """What is left of it, as a turn that begins behind the tokens taken."""
        if not self.taken:
            return self.params
        params, taken = self.params, len(self.taken)
        early = params.not_before
        return replace(
            params,
            max_tokens=params.max_tokens - taken,
            word=None if params.word is None else (*params.word, *self.taken),
            not_before=tuple((token, count - taken) for token, count in early if count > taken),
        )

    # -- the rules ---------------------------------------------------------------------------

    def _is_uncertain(self, _: int, p1: float) -> bool:
        below = self.params.stop_below
        return below is not None and p1 < below

    def _ends_text(self, token: int, _: float) -> bool:
        return token in self.stop_ids or token in self.params.ends

    def _is_beyond_word(self, token: int, _: float) -> bool:
        if self._word is None:
            return False
        self.part = self._word.push(token)
        return self.part is Part.BEYOND

    def _is_stop_token(self, token: int, _: float) -> bool:
        return token in self.params.stop_token_ids

    def _completes_word(self, _: int, __: float) -> bool:
        return self.part is Part.LAST

    def _has_its_length(self, _: int, __: float) -> bool:
        return len(self.taken) >= self._most


Rule = Callable[[Turn, int, float], bool]
"""Whether a token, at a position with this p1, ends the turn. Asked in order, at most once a
token."""

BEFORE: tuple[tuple[EndReason, Rule], ...] = (
    ("uncertain", Turn._is_uncertain),
    ("stop", Turn._ends_text),
    ("word", Turn._is_beyond_word),
    ("stop", Turn._is_stop_token),
)
"""What ends a turn without the token, and why."""

AFTER: tuple[tuple[EndReason, Rule], ...] = (
    ("word", Turn._completes_word),
    ("length", Turn._has_its_length),
)
"""What ends a turn with the token."""


def likeliest(token: Token) -> Token:
    """What the model would write at a token's position if it drew greedily."""
    return Token(*token.top[0], token.top)
