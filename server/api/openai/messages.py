"""The schemas of what the models read: messages, and how the prompts made of them end.

Knows: these fields, their types and limits, what refuses a field that isn't served, and the
requests of the routes that only show prompts. Does not know: how an answer is asked for, engines.
Source: OpenAI's API reference for messages; vLLM's server for the rest.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    RootModel,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from server.api.ask import Chat
from server.api.fields import (
    MAX_ITEMS,
    ModelName,
    Some,
    Strict,
    TokenIdList,
    empty,
    only,
    refuse,
    refused,
)
from server.api.openai.tools import Called, CalledFunction, Offer
from server.core import Message, ToolCall
from server.text.prompts import PromptEnd

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]

MAX_TOKENS = 2**18
"""That are spelled out at once."""


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """``content`` may be null in an assistant's message alone: a refusal, or one that called a
    tool instead of saying something.

    reasoning, reasoning_content: two names of the same.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Some[TextPart] | None = Field(None, validate_default=True)
    refusal: str | None = None
    name: str | None = Field(None, validate_default=True)
    tool_calls: Some[Called] | None = None
    function_call: CalledFunction | None = None
    tool_call_id: str | None = Field(None, validate_default=True)
    reasoning: str | None = None
    reasoning_content: str | None = None

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: Any, info: ValidationInfo) -> Any:
        if content is None and info.data.get("role") not in ("assistant", None):
            raise ValueError(f"a message of role {info.data['role']!r} needs content")
        return content

    @property
    def text(self) -> str:
        if self.content is None:
            return self.refusal or ""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)

    @field_validator("name", "tool_call_id")
    @classmethod
    def _says_what_it_answers(cls, value: str | None, info: ValidationInfo) -> str | None:
        needed = {"tool": "tool_call_id", "function": "name"}
        role = info.data.get("role")
        if value is None and needed.get(str(role)) == info.field_name:
            raise ValueError(f"a message of role {role!r} needs it")
        return value

    @field_validator("tool_calls", "function_call")
    @classmethod
    def _assistants_call(cls, called: Any, info: ValidationInfo) -> Any:
        role = info.data.get("role")
        if called and role not in ("assistant", None):
            raise ValueError(f"a message of role {role!r} calls no tools")
        return called

    def message(self, number: int, called: dict[str, str]) -> Message:
        """``number``: of the message. ``called``: the ids of calls in the older shape, which has
        none, by their function's name."""
        match self.role:
            case "developer":  # OpenAI: the newer name of `system`
                return Message("system", self.text)
            case "tool":
                return Message("tool", self.text, call_id=self.tool_call_id)
            case "function":
                return Message("tool", self.text, call_id=called.get(self.name or ""))
            case "assistant":
                calls = tuple(each.call for each in self.tool_calls or ())
                if (old := self.function_call) is not None:
                    called[old.name] = f"call_{number}"
                    calls += (ToolCall(called[old.name], old.name, old.arguments),)
                thought = self.reasoning or self.reasoning_content or ""
                return Message("assistant", self.text, calls, reasoning=thought)
        return Message(self.role, self.text)


class Conversation(Offer):
    """Messages, and how the prompts made of them end.

    add_generation_prompt: whether the assistant's next turn begins; unset: yes.
    continue_final_message: whether the answer goes on with the last message, an assistant's.
    """

    messages: Annotated[Some[ChatMessage], Field(min_length=1)]
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=1024)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: Effort | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_endless(cls, data: Any) -> Any:
        """So many parts in all as in one message."""
        messages = data.get("messages") if isinstance(data, dict) else None
        if isinstance(messages, list):
            contents = (each.get("content") for each in messages if isinstance(each, dict))
            if sum(len(each) for each in contents if isinstance(each, list)) > MAX_ITEMS:
                raise refused("messages", f"messages: more than {MAX_ITEMS} content parts")
        return data

    @model_validator(mode="before")
    @classmethod
    def _not_for_templates(cls, data: Any) -> Any:
        return refuse(data, {"chat_template": empty, "documents": empty})

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
    def _one_end(self) -> Conversation:
        name = "continue_final_message"
        if self.continue_final_message:
            if self.add_generation_prompt:
                raise refused(name, f"{name!r} and 'add_generation_prompt' can't both be true")
            if self.messages[-1].role != "assistant":
                raise refused(name, f"{name!r} needs a last message of role 'assistant'")
            if self.messages[-1].tool_calls or self.messages[-1].function_call:
                raise refused(name, f"{name!r}: a message that calls tools can't be continued")
        return self

    def chat(self) -> Chat:
        return Chat(
            self.conversation(),
            self.chat_template_kwargs,
            self.prompt_end,
            self.tools_asked,
            self.reasoning_effort,
        )

    def conversation(self) -> list[Message]:
        called: dict[str, str] = {}
        return [each.message(number, called) for number, each in enumerate(self.messages)]

    @property
    def prompt_end(self) -> PromptEnd:
        if self.continue_final_message:
            return "continued"
        return "closed" if self.add_generation_prompt is False else "open"


class TemplateRequest(Conversation):
    """``POST /apply-template``"""

    model: ModelName


class TokenizeMessages(Conversation):
    """``POST /tokenize`` for a conversation: the tokens that the model reads for a chat."""

    model: ModelName
    return_token_strs: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_for_messages(cls, data: Any) -> Any:
        # The tokens are those of a chat, and what is in front of them there is so here.
        neutral = {"prompt": only(), "add_special_tokens": only()}
        return refuse(data, neutral, "can't go with 'messages'")


class TokenizePrompt(Strict):
    """``POST /tokenize`` for a text."""

    model: ModelName
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_for_a_prompt(cls, data: Any) -> Any:
        neutral = {
            "add_generation_prompt": only(True),
            "continue_final_message": only(False),
            "chat_template_kwargs": empty,
        }
        return refuse(data, neutral, "needs 'messages'")


def _kind(data: Any) -> str:
    messages = isinstance(data, dict) and data.get("messages") is not None
    return "[messages]" if messages else "[prompt]"


class TokenizeRequest(
    # The brackets: no part of the path that an error names.
    RootModel[
        Annotated[
            Annotated[TokenizeMessages, Tag("[messages]")]
            | Annotated[TokenizePrompt, Tag("[prompt]")],
            Discriminator(_kind),
        ]
    ]
):
    """``POST /tokenize``"""


class DetokenizeRequest(Strict):
    """``POST /detokenize``"""

    model: ModelName
    tokens: Annotated[TokenIdList, Field(max_length=MAX_TOKENS)]
