"""What a request for a response asks for.

Knows: its fields, those that it shares with OpenAI's other requests under other names, and which
values aren't served. Does not know: engines, how an answer is written. Source: OpenAI's API
reference for responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from server.api.ask import Ask, Chat, Tools
from server.api.fields import Neutral, Strict, Whole, empty, only, refuse, refused
from server.api.openai.fields import MAX_TOP_LOGPROBS
from server.api.openai.messages import Effort
from server.api.openai.requests import Generation, StreamOptions
from server.api.responses.formats import TextOptions
from server.api.responses.items import Input, Item, ReferenceItem
from server.api.responses.tools import Choice, FunctionTools, tools_asked
from server.core import Message

LOGPROBS = "message.output_text.logprobs"

# Those of others speak of items that no answer here has, and of reasoning that is encrypted: here
# it is in the clear.
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]

_ELSEWHERE = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
}
"""Fields of other requests, and what they are called here."""

_NOT_SERVED: dict[str, Neutral] = {
    "n": only(1),
    "best_of": only(1),
    "background": empty,
    "conversation": empty,
    "prompt": empty,
    "context_management": empty,
    "truncation": only("disabled"),
    "chat_template_kwargs": empty,
}

_NOT_HERE = ("n", "best_of", "max_tokens", "response_format")
"""What is shared with the other requests and has no place in this one."""


def _leave_out(schema: dict[str, Any]) -> None:
    for name in _NOT_HERE:
        schema["properties"].pop(name, None)


class ReasoningOptions(Strict):
    """``summary``: nobody summarizes here; the reasoning itself is in the answer."""

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class ResponseStreamOptions(StreamOptions):
    """``include_obfuscation`` has nothing to hide: no delta is padded."""

    @model_validator(mode="before")
    @classmethod
    def _usage_comes_last(cls, data: Any) -> Any:
        return refuse(data, {"continuous_usage_stats": empty})


class ResponseRequest(Generation):
    """``POST /v1/responses``"""

    model_config = ConfigDict(json_schema_extra=_leave_out)

    input: Input = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: Annotated[Whole, Field(ge=1)] | None = None
    max_tool_calls: Annotated[Whole, Field(ge=1)] | None = None
    tools: FunctionTools = Field(default_factory=list)
    tool_choice: Choice = "auto"
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[Includable] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    stream_options: ResponseStreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_for_responses(cls, data: Any) -> Any:
        for name, here in _ELSEWHERE.items():
            refuse(data, {name: only()}, f"is {here!r} in a response's request")
        return refuse(data, _NOT_SERVED)

    @field_validator("input", "tools", "tool_choice", mode="before")
    @classmethod
    def _unset(cls, value: Any, info: Any) -> Any:
        if value is not None:
            return value
        return "auto" if info.field_name == "tool_choice" else []

    @field_validator("metadata")
    @classmethod
    def _short(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        pairs = (metadata or {}).items()
        if len(pairs) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in pairs):
            raise ValueError("at most 16 pairs, of keys of 64 and values of 512 characters")
        return metadata

    @model_validator(mode="after")
    def _tools_fit(self) -> ResponseRequest:
        _ = self.tools_asked
        return self

    @model_validator(mode="after")
    def _one_form(self) -> ResponseRequest:
        if self.structured_outputs is not None and self.text and self.text.schema_asked is not None:
            raise refused("structured_outputs", "'structured_outputs' can't go with 'text.format'")
        return self

    @model_validator(mode="after")
    def _logprobs_asked(self) -> ResponseRequest:
        if self.top_logprobs and self.top is None:
            raise refused("top_logprobs", f"'top_logprobs' needs {LOGPROBS!r} in 'include'")
        return self

    @property
    def tools_asked(self) -> Tools | None:
        return tools_asked(self.tools, self.tool_choice, self.parallel_tool_calls is not False)

    @property
    def items(self) -> list[Item | ReferenceItem]:
        return self.input if isinstance(self.input, list) else []  # a text has become an item

    def ask(self, messages: Sequence[Message]) -> Ask:
        """``messages``: the whole conversation."""
        effort = None if self.reasoning is None else self.reasoning.effort
        ask = self.ask_of(Chat(messages, tools=self.tools_asked, effort=effort))
        schema = None if self.text is None else self.text.schema_asked
        return ask if schema is None else replace(ask, schema=schema)

    def _max_tokens(self) -> int | None:
        return self.max_output_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if LOGPROBS in (self.include or ()) else None
