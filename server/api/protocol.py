"""The requests' schemas, OpenAI's fields and ours.

Knows: which fields there are, their types and limits, and which values aren't served yet. Does
not know: engines, the policy, how an answer is written. Source: OpenAI's API reference for chat
completions and completions; vLLM's server for the sampling fields that OpenAI lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.core import AnswerRequest, Message, NudgingConfig, SamplingParams

MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Request(BaseModel):
    # Unknown fields are ignored, as OpenAI-compatible servers do: UIs send their own.
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class TextPart(_Request):
    type: Literal["text"]
    text: str


class ChatMessage(_Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)

    def message(self) -> Message:
        # OpenAI: `developer` is the newer name of `system`.
        return Message("system" if self.role == "developer" else self.role, self.text)


class StreamOptions(_Request):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class NudgingOptions(BaseModel):
    """``nudging``: how this answer is to be nudged; unset fields are the served model's."""

    model_config = ConfigDict(strict=True, extra="forbid")

    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    policy: Literal["nudging", "reference"] | None = None
    start: Literal["base", "aligned"] | None = None
    end_lookahead: Annotated[int, Field(ge=0, le=1024)] | None = None
    max_rounds: Annotated[int, Field(ge=1)] | None = None
    trace: bool = False

    def over(self, config: NudgingConfig) -> NudgingConfig:
        """The settings with what this request sets."""
        return replace(config, **self.model_dump(exclude={"trace"}, exclude_none=True))

    @property
    def settings(self) -> set[str]:
        """The fields, other than ``trace``, that this request sets."""
        return set(self.model_dump(exclude={"trace"}, exclude_none=True))


def _empty(value: Any) -> bool:
    return value in (None, [], {}, "", False)


def _only(*neutral: Any) -> Callable[[Any], bool]:
    return lambda value: value is None or value in neutral


# What isn't served yet and would change the answer: the values that ask for nothing.
_NOT_YET: dict[str, Callable[[Any], bool]] = {
    "n": _only(1),
    "best_of": _only(1),
    "frequency_penalty": _only(0),
    "presence_penalty": _only(0),
    "repetition_penalty": _only(1),
    "logit_bias": _empty,
    "stop_token_ids": _empty,
    "min_tokens": _only(0),
    "ignore_eos": _empty,
    "response_format": lambda v: v is None or (isinstance(v, dict) and v.get("type") == "text"),
    "functions": _empty,
    "function_call": _only("none"),
    "modalities": _only(["text"]),
    "audio": _empty,
    "continue_final_message": _empty,
    "add_generation_prompt": _only(True),
    "suffix": _empty,
    "echo": _empty,
    "prompt_logprobs": _empty,
    "guided_json": _empty,
    "guided_regex": _empty,
    "guided_choice": _empty,
    "guided_grammar": _empty,
    "structured_outputs": _empty,
    "bad_words": _empty,
    "allowed_token_ids": _empty,
}


class Generation(_Request):
    """What both completion routes share."""

    model: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    nudging: NudgingOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_yet(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, neutral in _NOT_YET.items():
            if name in data and not neutral(data[name]):
                raise PydanticCustomError(
                    "not_supported", "'{param}' is not supported yet", {"param": name}
                )
        if not _empty(data.get("tools")) and data.get("tool_choice") != "none":
            raise PydanticCustomError(
                "not_supported", "'{param}' are not supported yet", {"param": "tools"}
            )
        return data

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings")
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        return stop

    @field_validator("stream_options")
    @classmethod
    def _no_continuous_usage(cls, options: StreamOptions | None) -> StreamOptions | None:
        if options is not None and options.continuous_usage_stats:
            raise PydanticCustomError(
                "not_supported",
                "'{param}' is not supported yet",
                {"param": "stream_options.continuous_usage_stats"},
            )
        return options

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid",
                "'{param}' is only allowed when 'stream' is true",
                {"param": "stream_options"},
            )
        return self

    @property
    def trace(self) -> bool:
        return self.nudging is not None and self.nudging.trace

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def beyond_reference(self) -> set[str]:
        """What this request asks for that the policy ``reference`` has no notion of."""
        options = self.nudging or NudgingOptions()
        asked = {f"nudging.{name}" for name in options.settings & {"start", "end_lookahead"}}
        if self.temperature:
            asked.add("temperature")
        if self._top_logprobs() is not None:
            asked.add("logprobs")
        return asked

    def answer_request(self, defaults: SamplingParams) -> AnswerRequest:
        given = {
            name: value
            for name in ("temperature", "top_p", "min_p", "seed")
            if (value := getattr(self, name)) is not None
        }
        if self.top_k is not None:
            given["top_k"] = max(self.top_k, 0)  # vLLM: -1 is off too
        return AnswerRequest(
            sampling=replace(defaults, **given),
            max_tokens=self._max_tokens(),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            top_logprobs=self._top_logprobs(),
        )

    def _max_tokens(self) -> int | None:
        return self.max_tokens

    def _top_logprobs(self) -> int | None:
        return None


class ChatRequest(Generation):
    """``POST /v1/chat/completions``"""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _own_kwargs(cls, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        # These are the server's own arguments of the template call.
        for name in ("tokenize", "add_generation_prompt", "chat_template", "conversation"):
            if name in (kwargs or {}):
                raise ValueError(f"{name!r} can't be set here")
        return kwargs

    @model_validator(mode="after")
    def _logprobs_asked(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError(
                "invalid", "'{param}' needs 'logprobs': true", {"param": "top_logprobs"}
            )
        return self

    def conversation(self) -> list[Message]:
        return [message.message() for message in self.messages]

    def _max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def _top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Generation):
    """``POST /v1/completions``"""

    prompt: str | list[int] | list[str]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, prompt: str | list[int] | list[str]) -> str | list[int] | list[str]:
        if not prompt:
            raise ValueError("must not be empty")
        if isinstance(prompt, list) and isinstance(prompt[0], str) and len(prompt) > 1:
            raise PydanticCustomError(
                "not_supported",
                "several prompts in '{param}' are not supported yet",
                {"param": "prompt"},
            )
        return prompt

    @property
    def one_prompt(self) -> str | list[int]:
        """Text, or token ids."""
        if isinstance(self.prompt, str):
            return self.prompt
        if isinstance(self.prompt[0], str):
            return self.prompt[0]
        return [token for token in self.prompt if isinstance(token, int)]

    def _max_tokens(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default here

    def _top_logprobs(self) -> int | None:
        return self.logprobs


class TemplateRequest(_Request):
    """``POST /apply-template``"""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    chat_template_kwargs: dict[str, Any] | None = None
