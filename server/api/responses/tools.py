"""Tools as this dialect spells them: flat, and a choice among them.

Knows: these fields. Does not know: how a model is told of tools, or calls one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag

from server.api.ask import Tools
from server.api.fields import Echoed, Some, Strict, kind_of, refused
from server.api.openai.tools import MAX_TOOLS, Function, check_tools


class FunctionTool(Function):
    type: Literal["function"]
    parameters: Echoed | None = None


def _functions(value: Any) -> Any:
    """Refuses by its name a tool that the server would have to have itself."""
    for number, tool in enumerate(value if isinstance(value, list) else ()):
        kind = kind_of(tool)
        if kind not in (None, "function"):
            where = f"tools.{number}"
            raise refused(where, f"{where}: {kind[:60]!r} is not supported; only functions are")
    return value


FunctionTools: TypeAlias = Annotated[
    list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True), BeforeValidator(_functions)
]


class ToolName(Strict):
    type: Literal["function"]
    name: str


class AllowedNames(Strict):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Some[ToolName]


def _choice(value: Any) -> Any:
    kind = kind_of(value)
    if kind not in (None, "function", "allowed_tools"):
        raise refused("tool_choice", f"tool_choice: {kind[:60]!r} is not supported")
    return value


def _form(value: Any) -> str:
    if not isinstance(value, dict):
        return "[word]"
    return "[allowed]" if kind_of(value) == "allowed_tools" else "[name]"


# The brackets: no part of the path that an error names.
Choice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("[word]")]
    | Annotated[ToolName, Tag("[name]")]
    | Annotated[AllowedNames, Tag("[allowed]")],
    Discriminator(_form),
    BeforeValidator(_choice),
]


def tools_asked(functions: list[FunctionTool], choice: Any, parallel: bool) -> Tools | None:
    """What may be called, and whether something must be. Raises `refused`."""
    offered = [each.tool for each in functions]
    if not offered and choice not in ("none", "auto"):
        raise refused("tool_choice", "'tool_choice' needs 'tools'")
    match choice:
        case ToolName(name=name):
            asked = Tools(offered, [name], demanded=True, parallel=False)
        case AllowedNames(mode=mode):
            asked = Tools(
                offered, [each.name for each in choice.tools], mode == "required", parallel
            )
        case _:
            asked = Tools(offered, demanded=choice == "required", parallel=parallel)
    check_tools(offered, asked)
    return asked if offered and choice != "none" else None
