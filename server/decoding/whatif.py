"""What a recorded answer says about another γ.

A trace holds every decision that γ took part in: the base model's tokens that were committed
(p1 ≥ γ), and those that were not (p1 < γ), where a nudge began or the answer ended. So it tells,
without any model, where an answer at γ' would first take another decision. Up to there both
answers are the same text, at temperature 0 and from the same models; behind it nothing is known.

A recorded position flips at γ' where

    rejected   the base model's token was committed, and p1 < γ'
    taken      the base model's token was discarded, for its p1 < γ, and p1 ≥ γ'. Not its end of
               text (an empty text), and not what it gave way at though it was sure (a turn's
               header, a repetition): there the aligned model speaks at any γ
    asked      at γ > 1 the base model was never asked, and at γ' ≤ 1 it would be

Knows: what the pieces of a policy that leaves its decisions mean. Does not know: how they came
about, files, HTTP. Standard library only.
``playground/static/whatif.js`` is the same function for the page; both are
held to ``tests/whatif.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from server.core import EndCheck, Speaker

Change = Literal["rejected", "taken", "asked"]


class RecordedToken(Protocol):
    """As `server.core.Rejected`."""

    @property
    def text(self) -> str: ...

    @property
    def top_prob(self) -> float: ...


class RecordedPiece(Protocol):
    """As `server.core.Piece`, and as a piece of a stored trace."""

    @property
    def text(self) -> str: ...

    @property
    def speaker(self) -> Speaker: ...

    @property
    def top_prob(self) -> float: ...

    @property
    def rejected(self) -> RecordedToken | None: ...


@dataclass(frozen=True, slots=True)
class Flip:
    """A recorded position whose decision is another one at γ'.

    piece: the index of the piece that stands there; the number of pieces: the answer's end.
    change: what becomes of the base model's token.
    text, top_prob: that token; None where it isn't known (``asked``).
    """

    piece: int
    change: Change
    text: str | None
    top_prob: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A recorded answer at another γ.

    gamma: that other one, γ'.
    flips: in order. Only the first is sure to be met at γ': behind it another text is written.
    prefix: the text before the first flip, or all of it; the answer at γ' begins with it.
    positions: how many recorded decisions there are.
    """

    gamma: float
    flips: tuple[Flip, ...]
    prefix: str
    positions: int


def compare(
    pieces: Sequence[RecordedPiece],
    end: RecordedToken | None,
    *,
    recorded: float,
    start: Speaker,
    end_check: EndCheck,
    gamma: float,
) -> Comparison:
    """Where an answer would first be another one.

    Args:
        pieces: of an answer whose trace is of `server.policies`' kind ``decisions``, in order.
        end: what the base model would have written where the answer ended (`Finished.rejected`).
        recorded: γ of that answer.
        start: who was asked first.
        end_check: whether the aligned model is asked where a line ends. Then it would end the
            answer there too, though the base model went on.
        gamma: γ'.
    """
    flips: list[Flip] = []
    positions = 0
    if recorded > 1 >= gamma:
        # The pieces are the aligned model's words, and the base model comes after the first.
        asked = 0 if start == "base" else 1
        flips += [Flip(index, "asked", None, None) for index in range(asked, len(pieces) + 1)]
        positions = len(flips)
    else:
        for index, piece in enumerate(pieces):
            if piece.speaker == "base":
                positions += 1
                if piece.top_prob < gamma:
                    flips.append(Flip(index, "rejected", piece.text, piece.top_prob))
            elif piece.rejected is not None:
                positions += 1
                if _taken(piece.rejected, recorded, gamma):
                    token = piece.rejected
                    flips.append(Flip(index, "taken", token.text, token.top_prob))
        if end is not None:
            positions += 1
            checked = end_check == "newline" and _ends_line(pieces, end)
            if _taken(end, recorded, gamma) and not checked:
                flips.append(Flip(len(pieces), "taken", end.text, end.top_prob))
    same = flips[0].piece if flips else len(pieces)
    prefix = "".join(piece.text for piece in pieces[:same])
    return Comparison(gamma, tuple(flips), prefix, positions)


def _taken(token: RecordedToken, recorded: float, gamma: float) -> bool:
    return token.text != "" and gamma <= token.top_prob < recorded


def _ends_line(pieces: Sequence[RecordedPiece], token: RecordedToken) -> bool:
    """Whether it would have ended a line that isn't empty, with nothing in front."""
    last = "".join(piece.text for piece in pieces).rstrip(" \t")
    return token.text.startswith("\n") and bool(last) and not last.endswith("\n")
