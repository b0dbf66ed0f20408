"""An answer that was written, as a file: what was asked, under which settings, and who wrote what.

Knows: the form of a stored trace (docs/playground.md), and what is wrong with one that isn't.
Does not know: how an answer is written, shown or compared. The playground writes and reads the
same form (``playground/static/trace.js``).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.api.openai.chat import ChatRequest
from server.api.openai.schemas import Usage
from server.config.nudging import PolicySettings
from server.core import EndCheck, FinishReason, Speaker, StopReason
from server.decoding.whatif import Comparison, compare
from server.policies import POLICIES, PolicySpec

Json = dict[str, Any]

FORMAT = "nudge-trace"
VERSION = 1

_FOLLOWED = {"response_format", "tools", "functions"}
"""Fields of a request that have its answer follow a grammar, whose p1 is of what that allows."""

_OURS = ("nudging", "stream", "stream_options")
"""Fields of a request that a stored one leaves out: its ``nudging`` is beside it, and how an
answer was sent is no part of it."""


class _Part(BaseModel):
    # Unknown keys are ignored, so that a later server may add some to the same version.
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Token(_Part):
    """What the base model would have written at a position where it gave way."""

    text: str
    top_prob: float = Field(ge=0, le=1)


class StoredPiece(_Part):
    text: str
    speaker: Speaker
    top_prob: float = Field(ge=0, le=1)
    rejected: Token | None = None


class StoredSettings(_Part, PolicySettings):
    """Every setting of the policies, the served model's own where the request left them."""

    end_check: EndCheck = "off"

    @model_validator(mode="before")
    @classmethod
    def _says_all_but_what_was_unknown_once(cls, data: Any) -> Any:
        named = cls.model_fields.keys() - {"entropy", "end_check"}
        if isinstance(data, dict) and (missing := sorted(named - data.keys())):
            raise PydanticCustomError("missing", "{names} missing", {"names": ", ".join(missing)})
        return data

    @property
    def spec(self) -> PolicySpec:
        return POLICIES[self.policy]

    @property
    def asked(self) -> Json:
        """As a request's ``nudging`` may say it: what has an effect."""
        return self.model_dump(include={"policy", *self.spec.settings})


class StoredText(_Part):
    """Thoughts, or what is said."""

    type: Literal["reasoning", "content"]
    text: str


class StoredCall(_Part):
    """id: none in the older shape."""

    type: Literal["call"]
    id: str | None = None
    name: str
    arguments: str

    @property
    def text(self) -> str:
        return self.name + self.arguments


class StoredAnswer(_Part):
    """parts: what the text consists of, in order; None: all of it is said."""

    text: str
    parts: list[StoredText | StoredCall] | None = None
    finish_reason: FinishReason
    stop_reason: StopReason
    rounds: int = Field(ge=0)
    pieces: list[StoredPiece]
    rejected: Token | None = None


class StoredTrace(_Part):
    """One answer to a chat.

    created: when, in seconds since 1970, as OpenAI's objects say it. server: the
    ``system_fingerprint``. request: the body that was sent, without `_OURS`. nudging: None where
    one model answered alone.
    """

    format: Literal["nudge-trace"]
    version: Literal[1]
    created: int
    server: str
    request: Json
    nudging: StoredSettings | None
    answer: StoredAnswer
    usage: Usage

    @field_validator("format", "version", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value not in (FORMAT, VERSION):
            raise ValueError(f"this is no trace that can be read; it must be {FORMAT} {VERSION}")
        return value

    @field_validator("request")
    @classmethod
    def _one_chat(cls, request: Json) -> Json:
        for name in _OURS:
            if name in request:
                raise ValueError(f"{name!r} has no place in a stored request")
        if ChatRequest.model_validate(request).n not in (None, 1):
            raise ValueError("a trace is of one answer; 'n' must be 1")
        return request

    @model_validator(mode="after")
    def _has_its_parts(self) -> StoredTrace:
        parts, text = self.answer.parts, self.answer.text
        if parts is not None and "".join(part.text for part in parts) != text:
            raise ValueError("answer.parts don't join to answer.text")
        return self

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> StoredTrace:
        answer, nudging = self.answer, self.nudging
        kind = "pieces" if nudging is None else nudging.spec.trace
        if kind != "rounds" and "".join(piece.text for piece in answer.pieces) != answer.text:
            raise ValueError("answer.pieces don't join to answer.text")
        if nudging is None:
            return self
        if not self.usage.nudging:
            raise ValueError(
                "usage.nudging is missing: one model wrote it, so nudging must be null"
            )
        if kind != "decisions" or _FOLLOWED & self.request.keys():
            return self
        for number, piece in enumerate(answer.pieces):
            if piece.speaker == "base" and piece.top_prob < nudging.gamma:
                raise ValueError(
                    f"answer.pieces.{number}: the base model wrote it, with p1 under gamma"
                )
        return self

    @classmethod
    def of(cls, request: Json, nudging: StoredSettings, response: Json) -> StoredTrace:
        """What a server answered, not streamed and with a trace.

        Raises `ValidationError` or `LookupError` where the response is something else.
        """
        choice = response["choices"][0]
        trace = dict(choice["nudging"])
        message, finish = choice["message"], choice["finish_reason"]
        text = message["content"]
        if message.keys() & {"tool_calls", "function_call", "reasoning"}:
            text = "".join(piece["text"] for piece in trace["pieces"])
            parts = _parts_of(message)
            # Not where text came behind a call: a message doesn't say so.
            if "".join(part.text for part in parts) == text:
                trace["parts"] = [part.model_dump() for part in parts]
        return cls.model_validate(
            {
                "format": FORMAT,
                "version": VERSION,
                "created": response["created"],
                "server": response["system_fingerprint"],
                "request": request,
                "nudging": nudging.model_dump(),
                "answer": {
                    "text": text,
                    "finish_reason": "tool_calls" if finish == "function_call" else finish,
                    **trace,
                },
                "usage": response["usage"],
            }
        )

    def stored(self) -> Json:
        """As it is written to a file."""
        return self.model_dump(exclude_none=True) | {
            "nudging": None if self.nudging is None else self.nudging.model_dump()
        }

    @property
    def not_comparable(self) -> str | None:
        """Why another γ means nothing to this answer; None where it does."""
        if self.nudging is None:
            return "one model wrote it alone, so no decision in it depends on gamma"
        if self.nudging.spec.trace != "decisions":
            return f"the policy {self.nudging.policy!r} records no decision that depends on gamma"
        return None

    @property
    def exact(self) -> bool:
        """Whether the same models must repeat this answer up to the first other decision: it is
        greedy, and p1 is of what is drawn."""
        request = ChatRequest.model_validate(self.request)
        neutral = {"repetition_penalty": 1}
        adjusted = (
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "logit_bias",
            *_FOLLOWED,
        )
        return request.temperature == 0 and not any(
            (value := getattr(request, name)) and value != neutral.get(name) for name in adjusted
        )

    def at(self, gamma: float) -> Comparison:
        """What this answer says about another γ."""
        assert self.nudging is not None
        return compare(
            self.answer.pieces,
            self.answer.rejected,
            recorded=self.nudging.gamma,
            start=self.nudging.start,
            end_check=self.nudging.end_check,
            gamma=gamma,
        )

    def asked_again(self, gamma: float) -> tuple[Json, StoredSettings]:
        """The body to send for the same answer at γ', and its settings."""
        assert self.nudging is not None
        settings = self.nudging.model_copy(update={"gamma": gamma})
        return self.request | {"nudging": settings.asked | {"trace": True}}, settings


def _parts_of(message: Json) -> list[StoredText | StoredCall]:
    """What an assistant's message consists of, in the order in which it is written."""
    texts: tuple[tuple[Literal["reasoning", "content"], str | None], ...] = (
        ("reasoning", message.get("reasoning")),
        ("content", message["content"]),
    )
    older = message.get("function_call")
    calls = [{"function": older}] if older else message.get("tool_calls", [])
    return [
        *(StoredText(type=kind, text=text) for kind, text in texts if text),
        *(StoredCall(type="call", id=call.get("id"), **call["function"]) for call in calls),
    ]
