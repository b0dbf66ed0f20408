"""The formats in which models call tools, and which of them a chat template has.

Knows: the literal text around a call's name and arguments. Does not know: grammars, prompts, how a
call is read from an answer.

Sources: the chat templates of Hermes 2 Pro and Qwen 2.5 and 3, of Llama 3.1, and of Mistral 7B
v0.3 and Mistral Small 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from server.core import ToolCall

FormatName = Literal["generic", "hermes", "llama3", "mistral", "mistral_args"]


@dataclass(frozen=True, slots=True)
class Format:
    """One row: an answer's calls are ``opens``, then each call, with ``between`` between them, then
    ``closes``. A call is ``head``, its name, ``mid``, its arguments, ``tail``.

    marker: what the first call begins with, and no other text of an answer holds.
    only_first: whether that is a call at the answer's beginning alone, and text anywhere else.
    several: whether an answer may have more than one.
    """

    name: FormatName
    marker: str
    head: str
    mid: str
    tail: str
    opens: str = ""
    between: str = ""
    closes: str = ""
    only_first: bool = False
    several: bool = True

    @property
    def opening(self) -> str:
        """All that stands in front of the first call's name."""
        return self.opens + self.head

    def written(self, calls: Sequence[ToolCall]) -> str:
        """Calls as an answer has them."""
        each = (self.head + call.name + self.mid + call.arguments + self.tail for call in calls)
        return self.opens + self.between.join(each) + self.closes


_HERMES = (
    "<tool_call>",
    '<tool_call>\n{"name": "',
    '", "arguments": ',
    "}\n</tool_call>",
)

_ROWS = (
    # An aligned model that learned no format is told this one, which many have seen.
    Format("generic", *_HERMES, between="\n"),
    Format("hermes", *_HERMES, between="\n"),
    Format(
        "llama3",
        marker='{"name": "',
        head='{"name": "',
        mid='", "parameters": ',
        tail="}",
        only_first=True,
        several=False,
    ),
    Format(
        "mistral",
        marker="[TOOL_CALLS]",
        opens="[TOOL_CALLS] [",
        head='{"name": "',
        mid='", "arguments": ',
        tail="}",
        between=", ",
        closes="]",
    ),
    Format("mistral_args", marker="[TOOL_CALLS]", head="[TOOL_CALLS]", mid="[ARGS]", tail=""),
)

FORMATS: dict[FormatName, Format] = {row.name: row for row in _ROWS}

assert FORMATS.keys() == {*get_args(FormatName)}

_JSON = re.compile(r'"arguments\\?"')
_TOOLS = re.compile(r"\{[{%][^}]*\btools\b")


def takes_tools(template: str) -> bool:
    """Whether a chat template can tell its model of tools."""
    return bool(_TOOLS.search(template))


def found(template: str) -> Format:
    """The format that a chat template teaches; ``generic``, where it is none of the table."""
    name: FormatName = "generic"
    if takes_tools(template):
        if "[TOOL_CALLS]" in template:
            name = "mistral_args" if "[ARGS]" in template else "mistral"
        elif "<tool_call>" in template and _JSON.search(template) and "<function=" not in template:
            name = "hermes"
        elif '"parameters"' in template and "ipython" in template:
            name = "llama3"
    return FORMATS[name]
