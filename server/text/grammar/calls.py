"""Answers that may, or must, call tools: from tools to a grammar, as text.

Knows: Lark's syntax as llguidance reads it, and what of an answer is free. Does not know:
llguidance itself, processes, whether a schema can be followed (`server.text.grammar.vetting`).

An answer is free text, in which the marker of a call can't stand but as the beginning of one, or
that text and calls, behind which nothing comes. One lexeme reads the free text up to the marker
and the marker with it: a lexer looks for the longest lexeme and doesn't go back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.text.thinking import Thoughts
from server.text.tools.formats import Format

ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True)
class CallsAsked:
    """
    format: in which calls are written.
    demanded: whether the answer must be a call. several: whether it may have more than one.
    thoughts: what may stand in front of it. thinking: whether the answer begins in them.
    answer: the schema of an answer without a call; None: free text.
    """

    format: Format
    demanded: bool = False
    several: bool = True
    thoughts: Thoughts | None = None
    thinking: bool = False
    answer: Mapping[str, Any] | None = None

    @property
    def free(self) -> bool:
        """Whether it begins with free text."""
        return not self.demanded and self.answer is None


def source(asked: CallsAsked, tools: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The grammar in Lark's syntax.

    Args:
        tools: names, and the schemas of their arguments as llguidance is to read them.
    """
    rows = asked.format
    rest = rows.opening.removeprefix(rows.marker)
    more = [rows.between, rows.head, "call"] if asked.several and rows.several else []
    first = _sequence(rest, "call", _repeated(more), rows.closes)
    rules = [f"first: {first}", "call: " + " | ".join(f"call_{i}" for i in range(len(tools)))]
    for number, (name, schema) in enumerate(tools):
        body = _sequence(name + rows.mid, "%json " + json.dumps(schema), rows.tail)
        rules.append(f"call_{number}: {body}")
    return "\n".join([*_beginning(asked), *rules]) + "\n"


def _beginning(asked: CallsAsked) -> list[str]:
    marker = _pattern(asked.format.marker)
    if asked.free:
        if asked.format.only_first:  # behind the space that a prompt's end may have left to it
            return [
                "start: TEXT | OPENED first",
                rf"TEXT: /(?s:.*)/ & ~/ ?{marker}(?s:.*)/",
                f"OPENED: / ?{marker}/",
            ]
        return [
            "start: TEXT | OPENED first",
            rf"TEXT: /(?s:.*)/ & ~/(?s:.*){marker}(?s:.*)/",
            rf"OPENED: /(?s:.*){marker}/ & ~/(?s:.*){marker}(?s:.+)/",
        ]
    calls = f"{_literal(asked.format.marker)} first"
    if asked.answer is not None:
        calls = f"{calls} | answer"
    rules = [] if asked.answer is None else ["answer: %json " + json.dumps(asked.answer)]
    if asked.thoughts is None:
        return [f"start: {calls}", *rules]
    closes = _pattern(asked.thoughts.closes)
    opens = "" if asked.thinking else _pattern(asked.thoughts.opens)
    thought = (
        rf"THOUGHT: /{opens}(?s:.*){closes}\n?\n?/ & ~/(?s:.*){closes}\n?\n?[^\n](?s:.*)/ "
        rf"& ~/(?s:.*){marker}(?s:.*)/"
    )
    needed = "THOUGHT" if asked.thinking else "THOUGHT?"
    return [f"start: {needed} said", f"said: {calls}", *rules, thought]


def _sequence(*parts: str) -> str:
    """Rules, and text, of which empty ones are left out."""
    shown = (
        part if part == "call" or part.startswith(("%json ", "(")) else _literal(part)
        for part in parts
        if part
    )
    return " ".join(shown)


def _repeated(parts: Sequence[str]) -> str:
    return f"({_sequence(*parts)})*" if parts else ""


def _literal(text: str) -> str:
    return json.dumps(text)


def _pattern(text: str) -> str:
    """A text in a regular expression between slashes."""
    return re.escape(text).replace("/", r"\/").replace("\\ ", " ")


def arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a call's arguments: an object, where nothing is said without anything in it."""
    if not parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **parameters}
