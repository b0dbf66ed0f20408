"""Tools in OpenAI's requests: what is offered, what may be called, what was called.

Knows: these fields, in their newer and their older shape, their limits, and how they fit together.
Does not know: in which format a model calls, what becomes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.api.ask import Tools
from server.api.fields import Some, Strict, refused
from server.core import Tool, ToolCall

MAX_TOOLS = 512

_NAME = r"^[a-zA-Z0-9_.-]{1,128}$"
Name = Annotated[str, Field(pattern=_NAME)]


class Function(Strict):
    """``parameters``: a JSON schema of an object; without it, the function takes none."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _of_an_object(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        if schema and schema.get("type", "object") != "object":
            raise ValueError("the schema of a function's parameters is one of an object")
        return schema

    @property
    def tool(self) -> Tool:
        return Tool(self.name, self.description or "", self.parameters or {}, bool(self.strict))


class OfferedTool(Strict):
    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _functions_alone(cls, data: Any) -> Any:
        kind = data.get("type", "function") if isinstance(data, dict) else "function"
        if kind != "function":
            raise unserved(kind)
        return data


def unserved(kind: Any) -> PydanticCustomError:
    """A kind of tool that isn't one of the client's own functions."""
    return refused("tools", f"tools: {str(kind)[:60]!r} is not supported; only functions are")


class _Named(Strict):
    name: str


class NamedChoice(Strict):
    type: Literal["function"]
    function: _Named


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Some[dict[str, Any]]


class AllowedChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


Choice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


class CalledFunction(Strict):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str


class Called(Strict):
    """A call of an assistant's message."""

    id: str
    type: Literal["function"] | None = None
    function: CalledFunction

    @property
    def call(self) -> ToolCall:
        return ToolCall(self.id, self.function.name, self.function.arguments)


class Offer(Strict):
    """What a request offers.

    functions, function_call: the older names of ``tools`` and ``tool_choice``; who uses them is
    answered in the older shape.
    """

    tools: Annotated[list[OfferedTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    function_call: Literal["none", "auto"] | _Named | None = None

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _known_choice(cls, choice: Any) -> Any:
        kinds = ("function", "allowed_tools")
        if isinstance(choice, dict) and choice.get("type") not in kinds:
            raise refused("tool_choice", f"tool_choice.type: one of {', '.join(kinds)}")
        return choice

    @model_validator(mode="after")
    def _tools_fit(self) -> Offer:
        if self.tools and self.functions:
            raise refused("functions", "'functions' can't go with 'tools', their newer name")
        field = "functions" if self.functions else "tools"
        check_tools(self._offered, self.tools_asked, field)
        if not self._offered:
            for name in ("tool_choice", "function_call"):
                if getattr(self, name) not in (None, "none", "auto"):
                    raise refused(name, f"{name!r} needs 'tools'")
        return self

    @property
    def legacy(self) -> bool:
        """Whether it is to be answered in the older shape."""
        return bool(self.functions)

    @property
    def _offered(self) -> list[Tool]:
        newer = [each.function for each in self.tools or ()]
        return [function.tool for function in newer or self.functions or ()]

    @property
    def tools_asked(self) -> Tools | None:
        offered = self._offered
        choice = self.function_call if self.legacy else self.tool_choice
        parallel = self.parallel_tool_calls is not False and not self.legacy
        if not offered or choice == "none":
            return None
        match choice:
            case NamedChoice(function=_Named(name=name)) | _Named(name=name):
                return Tools(offered, [name], demanded=True, parallel=False)
            case AllowedChoice(allowed_tools=allowed):
                functions = [each.get("function") for each in allowed.tools]
                names = [str(each.get("name")) for each in functions if isinstance(each, dict)]
                return Tools(offered, names, allowed.mode == "required", parallel)
            case _:
                return Tools(offered, demanded=choice == "required", parallel=parallel)


def check_tools(offered: Sequence[Tool], asked: Tools | None, field: str = "tools") -> None:
    """Raises `refused` for names that mean two tools, or none.

    Args:
        asked: what is made of what is ``offered``, where a model is to be told of it.
        field: that offers them.
    """
    names = Counter(tool.name for tool in offered)
    for name, times in names.items():
        if times > 1:
            raise refused(field, f"{field}: {name!r} is there {times} times")
    if asked is not None and asked.callable is not None:
        choice = "function_call" if field == "functions" else "tool_choice"
        for name in asked.callable:
            if name not in names:
                raise refused(choice, f"{choice}: no function {name[:60]!r} is offered")
        if not asked.callable:
            raise refused(choice, f"{choice}: no function is allowed")
