"""The requests' schemas, OpenAI's fields and ours.

Knows: which fields there are, their types and limits, and which values aren't served yet. Does
not know: engines, the policy, how an answer is written. Source: OpenAI's API reference for chat
completions and completions; vLLM's server for the sampling fields that OpenAI lacks.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from server.api.fields import (
    MAX_ITEMS,
    TOKEN_ID_SCHEMA,
    ModelName,
    Neutral,
    Strict,
    TokenIdList,
    Whole,
    described,
    empty,
    only,
    refuse,
    refused,
    token_ids,
)
from server.api.openai.messages import Conversation
from server.core import AnswerRequest, Grammar, NudgingConfig, SamplingParams
from server.policies import Policy, PolicySpec

MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


Text = Annotated[str, described(minLength=1)]


def _biases(value: dict[str, Any]) -> dict[str, float]:
    if len(value) > MAX_ITEMS:
        raise refused("logit_bias", f"logit_bias: more than {MAX_ITEMS} tokens")
    for token, bias in value.items():
        where = f"logit_bias.{token[:60]}"
        if not re.fullmatch("[0-9]{1,9}", token):
            raise refused(where, f"{where}: a token id is a whole number")
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise refused(where, f"{where}: a bias is a number from -100 to 100")
    return value


# Not by pydantic's own types, which would note each of a million wrong items before they say so.
Biases = Annotated[
    dict[str, Any],
    AfterValidator(_biases),
    WithJsonSchema(
        {
            "type": "object",
            "patternProperties": {
                "^[0-9]{1,9}$": {"type": "number", "minimum": -100, "maximum": 100}
            },
            "additionalProperties": False,
        }
    ),
]


def _prompt(value: Any) -> str | list[Any]:
    """A text, token ids, or a list of either."""
    if not isinstance(value, str | list):
        raise refused("prompt", "prompt: a text, token ids, or a list of either")
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    if not value or (kinds == {str} and "" in value) or (kinds == {list} and [] in value):
        raise refused("prompt", "prompt: must not be empty")
    if isinstance(value, str) or kinds == {str}:
        return value
    if kinds == {list}:
        return [token_ids(ids, f"prompt.{number}") for number, ids in enumerate(value)]
    return token_ids(value, "prompt")


_TOKEN_IDS = {"type": "array", "minItems": 1, "items": TOKEN_ID_SCHEMA}
_TEXT = {"type": "string", "minLength": 1}
Prompt = Annotated[
    Any,
    AfterValidator(_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                _TOKEN_IDS,
                {"type": "array", "minItems": 1, "items": _TEXT},
                {"type": "array", "minItems": 1, "items": _TOKEN_IDS},
            ]
        }
    ),
]

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


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    """``schema``: as llama.cpp's server and Together take it."""

    type: Literal["json_object"]
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class NamedSchema(Strict):
    """``strict`` is accepted either way: the answer follows the schema in any case."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """OpenAI's, or with the bare ``schema``, as llama.cpp's server takes it."""

    type: Literal["json_schema"]
    json_schema: NamedSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _one_schema(self) -> JsonSchemaFormat:
        if (self.json_schema is None) == (self.schema_ is None):
            raise refused(
                "response_format.json_schema", "response_format.json_schema: one schema is needed"
            )
        return self

    @property
    def asked(self) -> dict[str, Any]:
        return (self.schema_ or {}) if self.json_schema is None else self.json_schema.schema_


class NudgingOptions(BaseModel):
    """``nudging``: how this answer is to be nudged; unset fields are the served model's."""

    model_config = ConfigDict(strict=True, extra="forbid")

    gamma: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    entropy: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    policy: Policy | None = None
    start: Literal["base", "aligned"] | None = None
    end_lookahead: Annotated[Whole, Field(ge=0, le=1024)] | None = None
    max_rounds: Annotated[Whole, Field(ge=1)] | None = None
    trace: bool = False

    def over(self, config: NudgingConfig) -> NudgingConfig:
        """The settings with what this request sets."""
        return replace(config, **self.model_dump(exclude={"trace"}, exclude_none=True))

    @property
    def settings(self) -> set[str]:
        """The fields, other than ``trace``, that this request sets."""
        return set(self.model_dump(exclude={"trace"}, exclude_none=True))


# What isn't served and would change the answer: the values that ask for nothing.
_NOT_SERVED: dict[str, Neutral] = {
    "functions": empty,
    "function_call": only("none"),
    "modalities": only(["text"]),
    "audio": empty,
    "suffix": empty,
    "prompt_logprobs": empty,
    "guided_json": empty,
    "guided_regex": empty,
    "guided_choice": empty,
    "guided_grammar": empty,
    "structured_outputs": empty,
    "bad_words": empty,
    "allowed_token_ids": empty,
    "use_beam_search": empty,
    "length_penalty": only(1),
    "logits_processors": empty,
    "truncate_prompt_tokens": empty,
    "include_stop_str_in_output": empty,
    "skip_special_tokens": only(True),
    "return_token_ids": empty,
    "return_tokens_as_token_ids": empty,
    "grammar": empty,
    "json_schema": empty,
    "web_search_options": empty,
}


class Generation(Strict):
    """What both completion routes share."""

    model: ModelName
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    min_tokens: Annotated[Whole, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[Whole, Field(ge=-1, lt=2**31)] | None = None
    min_p: Probability | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    logit_bias: Biases | None = None
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    best_of: Annotated[Whole, Field(ge=1)] | None = None
    stop: Text | Annotated[list[Text], described(maxItems=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[TokenIdList, Field(max_length=64)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = Field(
        None, discriminator="type"
    )
    priority: Annotated[Whole, Field(ge=-(2**31), lt=2**31)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    nudging: NudgingOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_served(cls, data: Any) -> Any:
        return refuse(data, _NOT_SERVED)

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
            raise refused("stream_options", "'stream_options' needs 'stream': true")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise refused("best_of", "'best_of' other than 'n' is not supported")
        most = self._max_tokens()
        if most is not None and (self.min_tokens or 0) > most:
            raise refused("min_tokens", "'min_tokens' is more than the answer may have")
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

    def beyond(self, policy: PolicySpec) -> set[str]:
        """What this request asks for that a policy has no notion of."""
        options = self.nudging or NudgingOptions()
        asked = {f"nudging.{name}" for name in options.settings - {"policy", *policy.settings}}
        return asked | set(filter(self._asks_for, policy.refuses))

    def _asks_for(self, field: str) -> bool:
        """Whether a field is set to something that would change the answer."""
        match field:
            case "logprobs":
                return self._top_logprobs() is not None
            case "response_format":
                return self.schema_asked is not None
            case "repetition_penalty":
                return self.repetition_penalty not in (None, 1)
            case _:
                return bool(getattr(self, field))

    @property
    def schema_asked(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must match."""
        match self.response_format:
            case JsonObjectFormat(schema_=schema):
                return {"type": "object"} if schema is None else schema
            case JsonSchemaFormat():
                return self.response_format.asked
            case _:
                return None

    @property
    def begun(self) -> str:
        """The beginning of the answer, which is there already."""
        return ""

    def answer_request(self, defaults: SamplingParams, grammar: Grammar | None) -> AnswerRequest:
        """``grammar``: of `schema_asked`."""
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
            traced=self.trace,
            grammar=grammar,
        )

    def _max_tokens(self) -> int | None:
        return self.max_tokens

    def _top_logprobs(self) -> int | None:
        return None


class ChatRequest(Conversation, Generation):
    """``POST /v1/chat/completions``"""

    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_for_chat(cls, data: Any) -> Any:
        neutral = {"echo": empty, "add_special_tokens": only(False)}
        return refuse(data, neutral, "is not supported for chats")

    @property
    def begun(self) -> str:
        return self.messages[-1].text if self.continue_final_message else ""

    @model_validator(mode="after")
    def _logprobs_asked(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "'top_logprobs' needs 'logprobs': true")
        return self

    def _max_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def _top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Generation):
    """``POST /v1/completions``"""

    prompt: Prompt
    max_tokens: Annotated[Whole, Field(ge=0)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_for_texts(cls, data: Any) -> Any:
        return refuse(data, {"tools": empty}, "are not supported for texts")

    @model_validator(mode="after")
    def _something_comes_back(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise refused("max_tokens", "'max_tokens': 0 needs 'echo': true")
        return self

    @property
    def about_the_prompt(self) -> str | None:
        """The field that asks what a model says of the prompt itself, if one does."""
        if self.max_tokens == 0:
            return "max_tokens"
        return "echo" if self._prompt_logprobs else None

    @property
    def _prompt_logprobs(self) -> bool:
        return bool(self.echo) and self.logprobs is not None

    def answer_request(self, defaults: SamplingParams, grammar: Grammar | None) -> AnswerRequest:
        request = super().answer_request(defaults, grammar)
        return replace(request, prompt_logprobs=self._prompt_logprobs)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each a text, or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def _max_tokens(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default here

    def _top_logprobs(self) -> int | None:
        return self.logprobs
