"""Tools as this dialect spells them: flat, and a choice among them.

Knows: these fields. Does not know: how a model is told of tools, or calls one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag

from server.api.ask import Tools
from server.api.fields import Echoed, Some, Strict, kind_of, refused
from server.core import InvalidRequest, Tool

Name = Annotated[str, Field(min_length=1, max_length=128)]


class FunctionTool(Strict):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: Echoed | None = None
    strict: bool | None = None

    @property
    def tool(self) -> Tool:
        return Tool(self.name, self.description or "", self.parameters or {}, bool(self.strict))


def _functions(value: Any) -> Any:
    """Refuses by its name a tool that the server would have to have itself."""
    for number, tool in enumerate(value if isinstance(value, list) else ()):
        kind = kind_of(tool)
        if kind not in (None, "function"):
            where = f"tools.{number}"
            raise refused(
                where, f"{where}: {kind[:60]!r} is not served; only tools of type 'function' are"
            )
    return value


FunctionTools: TypeAlias = Annotated[Some[FunctionTool], BeforeValidator(_functions)]


class ToolName(Strict):
    type: Literal["function"]
    name: Name


class AllowedTools(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[Some[ToolName], Field(min_length=1)]


def _choice(value: Any) -> Any:
    kind = kind_of(value)
    if kind not in (None, "function", "allowed_tools"):
        raise refused("tool_choice", f"tool_choice: {kind[:60]!r} is not served")
    return value


def _form(value: Any) -> str:
    if not isinstance(value, dict):
        return "[word]"
    return "[allowed]" if kind_of(value) == "allowed_tools" else "[name]"


# The brackets: no part of the path that an error names.
Choice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")]
    | Annotated[ToolName, Tag("[name]")]
    | Annotated[AllowedTools, Tag("[allowed]")],
    Discriminator(_form),
    BeforeValidator(_choice),
]


def tools_asked(tools: list[FunctionTool], choice: Any, parallel: bool) -> Tools | None:
    """What may be called, and whether something must be. Raises `InvalidRequest`."""
    offered = [each.tool for each in tools]
    callable_: list[str] | None
    demanded: bool
    match choice:
        case ToolName(name=name):
            callable_, demanded = [name], True
        case AllowedTools(mode=mode):
            callable_, demanded = [each.name for each in choice.tools], mode == "required"
        case _:
            callable_, demanded = None, choice == "required"
    missing = set(callable_ or ()) - {each.name for each in offered}
    if missing or (demanded and not offered):
        named = f": there is no tool {min(missing)[:60]!r}" if missing else " needs 'tools'"
        raise InvalidRequest(f"'tool_choice'{named}", param="tool_choice")
    if not offered or choice == "none":
        return None
    return Tools(offered, callable_, demanded, parallel)
