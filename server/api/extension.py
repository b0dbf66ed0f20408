"""What this server adds to every dialect: ``nudging`` in a request, in its usage, in its answers.

Knows: these objects, as they are asked for, shown, and described in OpenAPI. Does not know: in
which dialect they stand, how an answer is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, create_model

from server.api.fields import WHOLE
from server.api.openapi import sometimes
from server.config.nudging import PolicySettings
from server.core import Finished, Piece, Rejected, Speaker, StopReason, Usage

Json = dict[str, Any]


class _Options(BaseModel):
    """``nudging``: how this answer is to be nudged; unset fields are the served model's."""

    model_config = ConfigDict(strict=True, extra="forbid")

    trace: bool = False

    @property
    def settings(self) -> Json:
        """What this request sets of `NudgingConfig`."""
        return self.model_dump(exclude={"trace"}, exclude_none=True)


if TYPE_CHECKING:
    NudgingOptions = _Options
else:
    NudgingOptions = create_model(
        "NudgingOptions",
        __base__=_Options,
        __doc__=_Options.__doc__,
        **{
            name: (Annotated[field.annotation, *field.metadata, WHOLE] | None, None)
            for name, field in PolicySettings.model_fields.items()
        },
    )


# -- as it is described ---------------------------------------------------------------------------


class NudgingUsage(BaseModel):
    """What both models did."""

    nudged_tokens: int
    base_tokens: int
    rounds: int
    nudged_share: float
    aligned_prompt_tokens: int
    base_steps: int
    aligned_steps: int
    untuned_steps: int = sometimes("By the third model, where the policy has one.")
    discarded_tokens: int


class RejectedToken(BaseModel):
    text: str
    top_prob: float


class TracedPiece(BaseModel):
    text: str
    speaker: Speaker
    top_prob: float
    rejected: RejectedToken = sometimes("What the base model would have written.")


class Trace(BaseModel):
    """Who wrote what. In a stream, all but the pieces is in a choice's last chunk."""

    pieces: list[TracedPiece]
    stop_reason: StopReason = sometimes()
    rounds: int = sometimes()
    rejected: RejectedToken = sometimes(
        "What the base model would have written where it gave way and the answer ended."
    )


# -- as it is shown -------------------------------------------------------------------------------


def usage(counts: Usage) -> Json | None:
    """Where both models took part."""
    if not (counts.base_prompt_tokens and counts.aligned_prompt_tokens):
        return None
    shown = {
        "nudged_tokens": counts.aligned_tokens,
        "base_tokens": counts.base_tokens,
        "rounds": counts.rounds,
        "nudged_share": round(counts.nudged_share, 4),
        "aligned_prompt_tokens": counts.aligned_prompt_tokens,
        "base_steps": counts.base_steps,
        "aligned_steps": counts.aligned_steps,
        "discarded_tokens": counts.discarded_tokens,
    }
    return shown | ({"untuned_steps": counts.untuned_steps} if counts.untuned_steps else {})


def pieces(written: Iterable[Piece]) -> list[Json]:
    """A trace's."""
    return [_piece(piece) for piece in written if not piece.only_tokens]


def outcome(finished: Finished) -> Json:
    """All of a trace but its pieces."""
    shown: Json = {"stop_reason": finished.stop_reason, "rounds": finished.usage.rounds}
    return shown | _rejected(finished.rejected)


def _piece(piece: Piece) -> Json:
    shown: Json = {"text": piece.text, "speaker": piece.speaker, "top_prob": piece.top_prob}
    return shown | _rejected(piece.rejected)


def _rejected(token: Rejected | None) -> Json:
    return {} if token is None else {"rejected": {"text": token.text, "top_prob": token.top_prob}}
