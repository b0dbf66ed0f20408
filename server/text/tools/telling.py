"""What a model is told of tools in plain text, where its template has no place for them.

Knows: a row of the table of formats. Does not know: templates, which model reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from server.core import Tool
from server.text.tools.formats import Format

BRIEF = 200
"""Characters of a description, at most, where it is told briefly."""

PROPERTIES = 24
"""Of a tool's arguments that are told of, at most, where it is told briefly."""

RESULT = "<tool_response>\n{}\n</tool_response>"
"""A tool's result, as a model reads it whose template has no role for it."""


def offered(tool: Tool) -> dict[str, Any]:
    """A tool as templates take it, and as it is told whole."""
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    function["parameters"] = dict(tool.parameters) or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def instruction(tools: Sequence[Tool], format: Format) -> str:
    """For a model that follows instructions: all that there is to know."""
    lines = "\n".join(json.dumps(offered(tool), ensure_ascii=False) for tool in tools)
    several = " Several calls follow one another." if format.several else ""
    return (
        f"You can call tools. These are their signatures:\n<tools>\n{lines}\n</tools>\n"
        "Where a tool is needed, end your answer with a call, a JSON object with the tool's name "
        f"and its arguments, exactly in this form:\n{_example(format)}\n{several.strip()}".rstrip()
        + "\nResults come in <tool_response></tool_response>. Without need for a tool, just answer."
    )


def brief(tools: Sequence[Tool], format: Format) -> str:
    """For a model that goes on with a text: names, arguments, and a line on each."""
    lines = "\n".join(f"- {_signature(tool)}{_line(tool.description)}" for tool in tools)
    return f"Tools:\n{lines}\nTo use a tool, the answer is a call:\n{_example(format)}"


def _example(format: Format) -> str:
    return (
        format.opening + "NAME" + format.mid + '{"ARGUMENT": VALUE}' + format.tail + (format.closes)
    )


def _signature(tool: Tool) -> str:
    properties = tool.parameters.get("properties")
    named = list(properties.items()) if isinstance(properties, Mapping) else []
    shown = [f"{name}{_kind(schema)}" for name, schema in named[:PROPERTIES]]
    return f"{tool.name}({', '.join(shown)}{', ...' if len(named) > PROPERTIES else ''})"


def _kind(schema: Any) -> str:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    return f": {kind}" if isinstance(kind, str) else ""


def _line(description: str) -> str:
    line = description.strip().partition("\n")[0]
    line = line if len(line) <= BRIEF else line[: BRIEF - 3].rstrip() + "..."
    return f": {line}" if line else ""
