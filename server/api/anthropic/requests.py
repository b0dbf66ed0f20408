"""Anthropic's two requests about messages.

Knows: their fields, which values are honoured, passed over or refused. Does not know: content
blocks (`server.api.anthropic.blocks`), how an answer is written. Source: Anthropic's API reference
for messages; the documentation of Claude Code for what that sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from server.api.anthropic.blocks import AnyMessage, Text, conversation, of_type
from server.api.ask import Ask, Chat, Tools
from server.api.extension import NudgingOptions
from server.api.fields import (
    MAX_ITEMS,
    ModelName,
    Neutral,
    Probability,
    Some,
    Strict,
    Whole,
    described,
    empty,
    only,
    refuse,
    refused,
)
from server.config import MAX_STOPS
from server.core import AnswerRequest, Message, Tool

_NOT_FOR_TOOLS: dict[str, Neutral] = {
    "defer_loading": empty,
    "input_examples": empty,
    "allowed_callers": only(["direct"], []),
}


class OwnTool(Strict):
    """``cache_control`` and ``eager_input_streaming`` ask for what happens anyway."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_served(cls, data: Any) -> Any:
        for name, neutral in _NOT_FOR_TOOLS.items():
            if isinstance(data, dict) and name in data and not neutral(data[name]):
                raise ValueError(f"{name!r} is not supported")
        return data

    def tool(self) -> Tool:
        return Tool(self.name, self.description or "", self.input_schema, bool(self.strict))


class ChoiceOfTool(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Strict):
    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Annotated[Whole, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted", "updates"] | None = None


class OutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class AllTurns(Strict):
    type: Literal["all"]


class LastTurns(Strict):
    type: Literal["thinking_turns"]
    value: Annotated[Whole, Field(ge=1)]


class ClearThinking(Strict):
    """``keep`` unset: of the last turn."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"] | Annotated[AllTurns | LastTurns, Field(discriminator="type")] | None = (
        None
    )

    @property
    def kept(self) -> int | None:
        """Of how many turns; None: of all."""
        if isinstance(self.keep, LastTurns):
            return self.keep.value
        return 1 if self.keep is None else None


class ContextManagement(Strict):
    edits: Some[Annotated[ClearThinking, of_type("clear_thinking_20251015")]] | None = None

    @property
    def thoughts(self) -> int | None:
        """Of how many turns they are kept; None: of all."""
        return min((edit.kept for edit in self.edits or () if edit.kept is not None), default=None)


_NOT_SERVED: dict[str, Neutral] = {
    "container": empty,
    "mcp_servers": empty,
    "output_format": empty,
    "speed": only("standard"),
}


class Prompt(Strict):
    """``POST /v1/messages/count_tokens``, and what a request for an answer has of it."""

    model: ModelName
    messages: Annotated[Some[AnyMessage], Field(min_length=1)]
    system: str | Some[Text] | None = None
    tools: Some[Annotated[OwnTool, of_type(None, "custom")]] | None = None
    tool_choice: ChoiceOfTool | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None

    _conversation: list[Message] = PrivateAttr(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _not_endless(cls, data: Any) -> Any:
        """So many blocks in all as in one message."""
        if sum(map(len, _lists(data))) > MAX_ITEMS:
            raise refused("messages", f"messages: more than {MAX_ITEMS} content blocks")
        return data

    @model_validator(mode="before")
    @classmethod
    def _not_served(cls, data: Any) -> Any:
        return refuse(data, _NOT_SERVED)

    @model_validator(mode="after")
    def _fits_together(self) -> Prompt:
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise refused("tools", "tools: two have the same name")
        if self.tool_choice is not None:
            self._check_choice(self.tool_choice, names)
        edits = self.context_management or ContextManagement()
        self._conversation = conversation(self.system, self.messages, edits.thoughts)
        return self

    @staticmethod
    def _check_choice(choice: ChoiceOfTool, names: list[str]) -> None:
        if choice.type in ("any", "tool") and not names:
            raise refused("tool_choice", f"'tool_choice' of type {choice.type!r} needs 'tools'")
        if choice.type == "tool" and choice.name not in names:
            raise refused("tool_choice.name", "tool_choice.name: there is no such tool")

    def chat(self) -> Chat:
        continued = self.messages[-1].role == "assistant"
        return Chat(
            self._conversation,
            self._template_kwargs(),
            "continued" if continued else "open",
            self._tools_asked(),
        )

    def _template_kwargs(self) -> dict[str, Any] | None:
        """Whether to think, for chat templates that know a switch for it: one of these."""
        if self.thinking is None:
            return None
        return dict.fromkeys(("enable_thinking", "thinking"), self._thinks)

    @property
    def _thinks(self) -> bool:
        """Whether it is asked to."""
        return self.thinking is not None and self.thinking.type != "disabled"

    def _tools_asked(self) -> Tools | None:
        choice = self.tool_choice or ChoiceOfTool(type="auto")
        if not self.tools or choice.type == "none":
            return None
        return Tools(
            [tool.tool() for tool in self.tools],
            callable=[choice.name] if choice.type == "tool" and choice.name else None,
            demanded=choice.type in ("any", "tool"),
            parallel=not choice.disable_parallel_tool_use,
        )


class MessagesRequest(Prompt):
    """``POST /v1/messages``"""

    max_tokens: Annotated[Whole, Field(ge=1)]
    stop_sequences: Annotated[list[str], described(maxItems=MAX_STOPS)] | None = None
    temperature: Probability | None = None
    top_p: Probability | None = None
    top_k: Annotated[Whole, Field(ge=0, lt=2**31)] | None = None
    stream: bool | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    nudging: NudgingOptions | None = None

    @field_validator("stop_sequences")
    @classmethod
    def _few_stops(cls, stops: list[str] | None) -> list[str] | None:
        if len(stops or ()) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings")
        if "" in (stops or ()):
            raise ValueError("a stop string must not be empty")
        return stops

    @property
    def trace(self) -> bool:
        return self.nudging is not None and self.nudging.trace

    def ask(self) -> Ask:
        sampling = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
        form = None if self.output_config is None else self.output_config.format
        return Ask(
            self.model,
            self.chat(),
            AnswerRequest(
                max_tokens=self.max_tokens,
                stop=tuple(self.stop_sequences or ()),
                traced=self.trace,
            ),
            sampling={name: value for name, value in sampling.items() if value is not None},
            nudging={} if self.nudging is None else self.nudging.settings,
            thinking_tokens=self._budget,
            schema=None if form is None else form.schema_,
            stream=bool(self.stream),
            running_usage=bool(self.stream),  # a stream says what was read before it says anything
            no_stop=self.stop_sequences is not None,
            passed_over=tuple(self._passed_over()),
        )

    @property
    def _budget(self) -> int | None:
        return self.thinking.budget_tokens if self.thinking and self._thinks else None

    def _passed_over(self) -> Iterator[str]:
        if self._thinks:
            yield "thinking"
        if self.output_config is not None and self.output_config.effort is not None:
            yield "output_config.effort"


def _lists(data: Any) -> Iterator[list[Any]]:
    """The lists of blocks in a body: of messages, and of results in them."""
    messages = data.get("messages") if isinstance(data, dict) else None
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for block in content if isinstance(content, list) else ():
            inner = block.get("content") if isinstance(block, dict) else None
            if isinstance(inner, list):
                yield inner
        if isinstance(content, list):
            yield content
