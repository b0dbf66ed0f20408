"""Laws of the grammar of an answer that may, or must, call tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.core import Grammar, InvalidRequest, Tool, ToolCall
from server.decoding.prose import Prose
from server.text.grammar.calls import CallsAsked
from server.text.grammar.compiler import GrammarCompiler
from server.text.grammar.vetting import matches
from server.text.thinking import THOUGHTS
from server.text.tools.formats import FORMATS, Format

LOOKUP = Tool(
    "lookup", "", {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
)
LOOKAHEAD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}
ODD = Tool("odd", "", LOOKAHEAD)
TOOLS = [LOOKUP, Tool("now"), ODD]

LOOKS = ToolCall("", "lookup", '{"a": "x}\\""}')
ALL = [*FORMATS.values()]


@pytest.fixture(scope="module")
async def compiler() -> AsyncIterator[GrammarCompiler]:
    compiler = GrammarCompiler()
    yield compiler
    await compiler.aclose()


def call(name: str, arguments: str) -> ToolCall:
    return ToolCall("", name, arguments)


@pytest.mark.parametrize("form", ALL, ids=[form.name for form in ALL])
async def test_free_text_or_calls_and_nothing_behind_them(
    compiler: GrammarCompiler, form: Format
) -> None:
    grammar = await compiler.calls(CallsAsked(form), TOOLS)
    one = form.written([LOOKS])
    for text in ("", "Hi.\nAll is well. <tool", one, form.written([call("now", "{}")])):
        assert matches(grammar, text), text
    assert matches(grammar, f"Let me see.\n{one}")
    for text in (f"{one} ", f"{one} So.", one[:-1], form.marker, f"{form.marker} x"):
        assert not matches(grammar, text), text
    assert matches(grammar, form.written([LOOKS, LOOKS])) == form.several


@pytest.mark.parametrize("form", ALL, ids=[form.name for form in ALL])
async def test_names_and_arguments_are_as_offered(compiler: GrammarCompiler, form: Format) -> None:
    grammar = await compiler.calls(CallsAsked(form), TOOLS)
    wrong = [
        call("look", '{"a": ""}'),
        call("lookup", "{}"),
        call("lookup", '{"a": 1}'),
        call("lookup", '{"a": "", "b": 1}'),
        call("now", '{"a": ""}'),
        call("odd", "[]"),
    ]
    for each in wrong:
        assert not matches(grammar, form.written([each])), each
    assert matches(grammar, form.written([call("odd", '{"anything": [1]}')]))


@pytest.mark.parametrize("form", ALL, ids=[form.name for form in ALL])
async def test_a_demanded_call_begins_at_once_or_behind_thoughts(
    compiler: GrammarCompiler, form: Format
) -> None:
    one, thought = form.written([LOOKS]), "Hm.\nShe <b> is.</think>\n\n"
    plain = await compiler.calls(CallsAsked(form, demanded=True), TOOLS)
    assert matches(plain, one)
    for text in ("", "Hi", f"Hi {one}", f"<think>{thought}{one}"):
        assert not matches(plain, text), text
    think = THOUGHTS["think"]
    may = await compiler.calls(CallsAsked(form, demanded=True, thoughts=think), TOOLS)
    assert matches(may, one)
    assert matches(may, f"<think>\n{thought}{one}")
    assert not matches(may, f"{thought}{one}")
    asked = CallsAsked(form, demanded=True, thoughts=think, thinking=True)
    does = await compiler.calls(asked, TOOLS)
    assert matches(does, thought + one)
    assert not matches(does, one)
    assert not matches(does, f"{thought}So: {one}")


async def test_one_call_where_one_is_wanted(compiler: GrammarCompiler) -> None:
    form = FORMATS["hermes"]
    grammar = await compiler.calls(CallsAsked(form, several=False), TOOLS)
    assert matches(grammar, form.written([LOOKS]))
    assert not matches(grammar, form.written([LOOKS, LOOKS]))


async def test_what_can_not_be_followed_is_named_where_it_is_strict(
    compiler: GrammarCompiler,
) -> None:
    strict = Tool("odd", "", LOOKAHEAD, strict=True)
    with pytest.raises(InvalidRequest, match="'odd', which is strict") as caught:
        await compiler.calls(CallsAsked(FORMATS["hermes"]), [LOOKUP, strict])
    assert caught.value.param == "tools"


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
HOSTILE: dict[str, Any] = {
    "itself": {"$ref": "#"},
    "a ring": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "recursive": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "remote": {"$ref": "https://example.com/schema.json"},
    "no place": {"$ref": "#/nowhere"},
    "deep": None,
    "wide": {"properties": {f"p{i}": {"type": "string"} for i in range(3000)}},
    "any of": {"anyOf": [{"properties": {"a": {}}}, {"required": ["b"]}, {"type": "string"}]},
    "enum": {"properties": {"a": {"enum": ["x" * 1000, None, 1e400, {"b": []}]}}},
    "pattern": {"properties": {"a": {"type": "string", "pattern": "(a+)+$" * 20}}},
    "repeats": {"properties": {"a": {"type": "string", "pattern": "(a{1,999}){1,999}"}}},
    "no pattern": {"properties": {"a": {"type": "string", "pattern": "("}}},
    "lengths": {"properties": {"a": {"type": "string", "minLength": 10**9}}},
    "items": {"properties": {"a": {"type": "array", "minItems": 10**6}}},
    "nothing fits": {"properties": {"a": False}, "required": ["a"]},
    "words": {"properties": "many", "required": "all"},
    "unknown type": {"properties": {"a": {"type": "thing"}}},
    "quotes": {"properties": {'"\\\n%json{': {"const": '"}</tool_call>'}}},
}
_deep: dict[str, Any] = {}
for _ in range(150):
    _deep = {"properties": {"a": _deep}}
HOSTILE["deep"] = _deep


@pytest.mark.parametrize("name", [*HOSTILE])
async def test_any_schema_makes_a_grammar_or_is_refused(
    compiler: GrammarCompiler, name: str
) -> None:
    form = FORMATS["hermes"]
    tool = Tool("f", "", HOSTILE[name])
    grammar = await compiler.calls(CallsAsked(form), [LOOKUP, tool])
    assert matches(grammar, form.written([LOOKS]))
    refusal: InvalidRequest | None = None
    try:
        await compiler.calls(CallsAsked(form), [Tool("f", "", HOSTILE[name], strict=True)])
    except InvalidRequest as error:
        refusal = error
    assert refusal is None or (refusal.param == "tools" and "'f'" in str(refusal))


# -- prose -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "over"),
    [
        (["Hi <tool_", "call", ">"], [False, False, True]),
        (["<tool_call", "x>", "<tool_call>"], [False, False, True]),
        ([" ", "Hi"], [False, False]),
    ],
)
def test_prose_ends_at_the_marker(texts: list[str], over: list[bool]) -> None:
    prose = Prose(Grammar("", opens="<tool_call>", field="tools"))
    for text, ends in zip(texts, over, strict=True):
        prose.hear(text)
        assert prose.over is ends


def test_or_at_the_answers_beginning_alone() -> None:
    opens = '{"name": "'
    for first, over in ((" ", True), ("", True), ("So ", False)):
        prose = Prose(Grammar("", opens=opens, only_first=True, field="tools"))
        for text in (first, opens[:4], opens[4:]):
            prose.hear(text)
        assert prose.over is over


def test_a_schema_from_the_beginning_leaves_no_prose() -> None:
    assert Prose(Grammar("")).over
    assert not Prose(None).over
