"""What OpenAI's two requests for answers have in common.

Knows: which fields there are, OpenAI's, vLLM's and ours, how they fit together, and which values
aren't served yet. Does not know: engines, the policy, how an answer is written. Source: OpenAI's
API reference for chat completions and completions; vLLM's server for the sampling fields that
OpenAI lacks.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from server.api.ask import Ask, Asked
from server.api.extension import NudgingOptions
from server.api.fields import (
    ModelName,
    Neutral,
    Probability,
    SessionName,
    Strict,
    TokenIdList,
    Whole,
    described,
    empty,
    only,
    refuse,
    refused,
)
from server.api.openai.fields import Biases, Penalty, Text
from server.api.openai.formats import Format, StructuredOutputs, schema_asked
from server.config import MAX_STOPS
from server.core import AnswerRequest

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


# What isn't served and would change the answer: the values that ask for nothing.
_NOT_SERVED: dict[str, Neutral] = {
    "modalities": only(["text"]),
    "audio": empty,
    "suffix": empty,
    "prompt_logprobs": empty,
    "guided_json": empty,
    "guided_regex": empty,
    "guided_choice": empty,
    "guided_grammar": empty,
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
    response_format: Annotated[Format | None, Field(discriminator="type")] = None
    structured_outputs: StructuredOutputs | None = None
    priority: Annotated[Whole, Field(ge=-(2**31), lt=2**31)] | None = None
    session_id: SessionName | None = None
    thinking_token_budget: Annotated[Whole, Field(ge=0, lt=2**31)] | None = None
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
        form = self.structured_outputs
        if form is not None and schema_asked(self.response_format) is not None:
            raise refused(
                "structured_outputs", "'structured_outputs' can't go with 'response_format'"
            )
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

    def ask_of(self, prompt: Asked, **more: Any) -> Ask:
        """``more``: of `Ask`."""
        sampling = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            sampling["top_k"] = max(self.top_k, 0)  # vLLM: -1 is off too
        if self.logit_bias:
            sampling["logit_bias"] = tuple((int(i), bias) for i, bias in self.logit_bias.items())
        options = self.stream_options
        structured = self.structured_outputs
        schema = schema_asked(self.response_format)
        return Ask(
            self.model,
            prompt,
            self._answer(),
            sampling=sampling,
            nudging={} if self.nudging is None else self.nudging.settings,
            schema=schema if structured is None else structured.schema_asked,
            form=None if structured is None else structured.form_asked,
            n=self.n or 1,
            priority=self.priority or 0,
            stream=bool(self.stream),
            running_usage=bool(options and options.continuous_usage_stats),
            no_stop=self.stop is not None,
            thinking_tokens=self.thinking_token_budget,
            **more,
        )

    def _answer(self) -> AnswerRequest:
        return AnswerRequest(
            max_tokens=self._max_tokens(),
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(dict.fromkeys(self.stop_token_ids or ())),
            top_logprobs=self.top,
            traced=self.trace,
            session=self.session_id,
        )

    def _max_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """Alternatives a token to report; None: no log probabilities."""
        return None
