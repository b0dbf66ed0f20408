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

from server.core import AnswerRequest, Grammar, Message, NudgingConfig, SamplingParams
from server.grammar import json_grammar

MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIdText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
"""JSON has no other keys than strings."""

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
"""Fields with the same name here and in `SamplingParams`."""


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


class TextFormat(_Request):
    type: Literal["text"]


class JsonObjectFormat(_Request):
    type: Literal["json_object"]


class NamedSchema(_Request):
    """``strict`` is accepted either way: the answer follows the schema in any case."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(_Request):
    type: Literal["json_schema"]
    json_schema: NamedSchema


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


# What isn't served and would change the answer: the values that ask for nothing.
_NOT_SERVED: dict[str, Callable[[Any], bool]] = {
    "functions": _empty,
    "function_call": _only("none"),
    "modalities": _only(["text"]),
    "audio": _empty,
    "suffix": _empty,
    "prompt_logprobs": _empty,
    "guided_json": _empty,
    "guided_regex": _empty,
    "guided_choice": _empty,
    "guided_grammar": _empty,
    "structured_outputs": _empty,
    "bad_words": _empty,
    "allowed_token_ids": _empty,
    "use_beam_search": _empty,
    "truncate_prompt_tokens": _empty,
}


def _refused(param: str, message: str) -> PydanticCustomError:
    """A refusal that names its field, also where pydantic reports a whole model."""
    return PydanticCustomError("refused", "{message}", {"param": param, "message": message})


class Generation(_Request):
    """What both completion routes share."""

    model: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Probability | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    logit_bias: dict[TokenIdText, Bias] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = Field(
        None, discriminator="type"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    nudging: NudgingOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_served(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, neutral in _NOT_SERVED.items():
            if name in data and not neutral(data[name]):
                raise _refused(name, f"{name!r} is not supported")
        if not _empty(data.get("tools")) and data.get("tool_choice") != "none":
            raise _refused("tools", "'tools' are not supported, unless 'tool_choice' is 'none'")
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

    @model_validator(mode="after")
    def _fits_together(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise _refused("stream_options", "'stream_options' needs 'stream': true")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise _refused("best_of", "'best_of' other than 'n' is not supported")
        most = self._max_tokens()
        if most is not None and (self.min_tokens or 0) > most:
            raise _refused("min_tokens", "'min_tokens' is more than the answer may have")
        return self

    @property
    def trace(self) -> bool:
        return self.nudging is not None and self.nudging.trace

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def samples(self) -> int:
        """Independent answers for each prompt."""
        return self.n or 1

    def beyond_reference(self) -> set[str]:
        """What this request asks for that the policy ``reference`` has no notion of."""
        options = self.nudging or NudgingOptions()
        asked = {f"nudging.{name}" for name in options.settings & {"start", "end_lookahead"}}
        neutral = {"repetition_penalty": 1}
        for name in (*_SAMPLING, "logit_bias", "min_tokens", "ignore_eos", "stop_token_ids"):
            if name not in ("top_p", "top_k", "min_p", "seed"):  # greedy has no use for them
                value = getattr(self, name)
                if value and value != neutral.get(name):
                    asked.add(name)
        if self.grammar is not None:
            asked.add("response_format")
        if self._top_logprobs() is not None:
            asked.add("logprobs")
        return asked

    @property
    def grammar(self) -> Grammar | None:
        """Raises `InvalidRequest` for a schema that can't be followed exactly."""
        match self.response_format:
            case JsonObjectFormat():
                return json_grammar({"type": "object"})
            case JsonSchemaFormat(json_schema=named):
                return json_grammar(named.schema_)
            case _:
                return None

    def answer_request(self, defaults: SamplingParams) -> AnswerRequest:
        given = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            given["top_k"] = max(self.top_k, 0)  # vLLM: -1 is off too
        if self.logit_bias:
            given["logit_bias"] = tuple((int(i), bias) for i, bias in self.logit_bias.items())
        return AnswerRequest(
            sampling=replace(defaults, **given),
            max_tokens=self._max_tokens(),
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(dict.fromkeys(self.stop_token_ids or ())),
            top_logprobs=self._top_logprobs(),
            grammar=self.grammar,
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
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _own_kwargs(cls, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        # These are the server's own arguments of the template call.
        for name in (
            "tokenize",
            "add_generation_prompt",
            "chat_template",
            "conversation",
            "continue_final_message",
        ):
            if name in (kwargs or {}):
                raise ValueError(f"{name!r} can't be set here")
        return kwargs

    @model_validator(mode="after")
    def _logprobs_asked(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise _refused("top_logprobs", "'top_logprobs' needs 'logprobs': true")
        return self

    def conversation(self) -> list[Message]:
        return [message.message() for message in self.messages]

    def _max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def _top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Generation):
    """``POST /v1/completions``"""

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @field_validator("prompt")
    @classmethod
    def _not_empty(cls, prompt: Any) -> Any:
        if not prompt or (isinstance(prompt, list) and any(each in ("", []) for each in prompt)):
            raise ValueError("must not be empty")
        return prompt

    @model_validator(mode="after")
    def _no_prompt_logprobs(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise _refused("echo", "'echo' together with 'logprobs' is not supported")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each a text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [each for each in self.prompt if not isinstance(each, int)]

    def _max_tokens(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default here

    def _top_logprobs(self) -> int | None:
        return self.logprobs


class TemplateRequest(_Request):
    """``POST /apply-template``"""

    model: Annotated[str, Field(min_length=1)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    chat_template_kwargs: dict[str, Any] | None = None
