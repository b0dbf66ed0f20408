"""Laws of tool calls in an answer: whatever pieces a text comes in, its parts are the same."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core import Finished, Piece, StopReason, ToolCall, Usage
from server.decoding.calls import Calls, new_id
from server.decoding.parsing import (
    CallArguments,
    CallBegins,
    Content,
    Parser,
    Part,
    Plain,
    Reasoning,
)
from server.decoding.thinking import Thinking
from server.text.thinking import THOUGHTS
from server.text.tools.formats import FORMATS, Format

VALUES = st.recursive(
    st.text(max_size=6) | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["a", "b}", 'c"', "d\\"]), VALUES, max_size=3).map(
    json.dumps
)
CALLS = st.lists(
    st.builds(ToolCall, st.just(""), st.sampled_from(["f", "look_up", "a.b-c"]), ARGUMENTS),
    max_size=3,
)
SAID = st.sampled_from(["", "Sure.", "I'll look it up:\n", "<tool", "[TOOL_", "x {", "  "])
FORMAT = st.sampled_from(sorted(FORMATS.values(), key=lambda row: row.name))
CUTS = st.lists(st.integers(0, 400), max_size=12)


def pieces(text: str, cuts: Iterable[int]) -> list[Piece]:
    """In turns by the two speakers."""
    at = [0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
    speakers = itertools.cycle(["base", "aligned"])
    return [
        Piece(text[a:b], speaker, 0.5, 1)  # type: ignore[arg-type]
        for (a, b), speaker in zip(itertools.pairwise(at), speakers, strict=False)
        if b > a
    ]


def read(
    parser: Parser, written: Sequence[Piece], stop: StopReason = "aligned_end"
) -> tuple[list[Part], Finished]:
    parts = [part for piece in written for part in parser.push(piece)]
    *rest, finished = parser.end(Finished(stop, Usage()))
    assert isinstance(finished, Finished)
    return [*parts, *rest], finished  # type: ignore[list-item]


def joined(parts: Sequence[Part]) -> list[tuple[object, ...]]:
    """As a client joins them."""
    found: dict[object, list[str]] = {}
    for part in parts:
        match part:
            case Content(piece) | Reasoning(piece):
                found.setdefault(type(part).__name__, []).append(piece.text)
            case CallBegins(number, _, name, _):
                found[number] = [f"{name} "]
            case CallArguments(number, piece):
                found[number].append(piece.text)
    return [(key, "".join(texts)) for key, texts in found.items()]


def calls(format: Format) -> Calls:
    numbers = itertools.count()
    return Calls(format, lambda: f"id{next(numbers)}")


@given(FORMAT, SAID, CALLS, CUTS)
def test_what_was_written_is_read_again_however_it_is_cut(
    format: Format, said: str, made: list[ToolCall], cuts: list[int]
) -> None:
    made = made if format.several else made[:1]
    said = "" if format.only_first and made else said
    text = said + (format.written(made) if made else "")
    parts, finished = read(calls(format), pieces(text, cuts))
    expected: list[tuple[object, ...]] = []
    if said.strip() or (said and not made):
        expected.append(("Content", said))
    expected += [(i, f"{call.name} {call.arguments}") for i, call in enumerate(made)]
    assert joined(parts) == expected
    assert finished.calls == len(made)
    assert finished.finish_reason == ("tool_calls" if made else "stop")


@given(FORMAT, CALLS.filter(bool), st.integers(0, 300), CUTS)
def test_an_answer_that_is_cut_in_a_call_has_no_markup_as_text(
    format: Format, made: list[ToolCall], length: int, cuts: list[int]
) -> None:
    text = format.written(made if format.several else made[:1])[:length]
    parts, finished = read(calls(format), pieces(text, cuts), "length")
    whole, _ = read(calls(format), [Piece(text, "base", 0.5, 1)] if text else [], "length")
    assert joined(parts) == joined(whole)
    if len(text) >= len(format.marker):
        assert not any(isinstance(part, Content) for part in parts)
    for part in parts:
        if isinstance(part, CallBegins):
            assert part.name == made[part.number].name
    for key, text_of in joined(parts):
        if isinstance(key, int):
            _, _, arguments = str(text_of).partition(" ")
            assert made[key].arguments.startswith(arguments)
    assert finished.finish_reason == "length"


@given(FORMAT, st.text(alphabet='<tool_call>[TOLCARGS]{"name": ,}\n x', max_size=80), CUTS)
def test_any_text_gives_the_same_parts_in_any_pieces(
    format: Format, text: str, cuts: list[int]
) -> None:
    for stop in ("aligned_end", "length"):
        whole, one = read(calls(format), [Piece(text, "base", 0.5, 1)] if text else [], stop)
        parts, finished = read(calls(format), pieces(text, cuts), stop)
        assert joined(parts) == joined(whole)
        assert finished == one


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\nhello",
        '<tool_call>\n{"name": "f"}',
        '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "two words", "arguments": {}}\n</tool_call>',
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    parts, finished = read(calls(FORMATS["hermes"]), pieces(f"So: {text}", [7]))
    assert joined(parts) == [("Content", f"So: {text}")]
    assert finished.finish_reason == "stop"


def test_every_part_has_the_speaker_who_wrote_it() -> None:
    text = 'Look: <tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>'
    at = [text.index(":") + 1, text.index('f"'), text.index('"b')]
    parts, _ = read(calls(FORMATS["hermes"]), pieces(text, at))
    spoken = [(type(part).__name__, part.piece.text, part.piece.speaker) for part in parts]
    assert spoken == [
        ("Content", "Look:", "base"),
        ("Content", " ", "aligned"),
        ("CallBegins", "f", "base"),
        ("CallArguments", '{"a": ', "base"),
        ("CallArguments", '"b"}', "aligned"),
    ]


def test_ids_are_those_of_openai_and_never_the_same() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("call_[A-Za-z0-9]{24}", each) for each in ids)


# -- thoughts --------------------------------------------------------------------------------------

THOUGHT = st.sampled_from(["", "Hm.", "\nLet me see.\n\nYes < no </thin\n", "a  b"])
ANSWER = st.sampled_from(["", "42.", " No.", "It is\n\n<think>not</think> so."])


def thinking(behind: Callable[[], Parser], **more: object) -> Thinking:
    return Thinking(THOUGHTS["think"], behind(), **more)  # type: ignore[arg-type]


@given(THOUGHT, ANSWER, st.booleans(), CUTS)
def test_thoughts_are_told_from_what_is_said(
    thought: str, answer: str, inside: bool, cuts: list[int]
) -> None:
    text = ("" if inside else "<think>\n") + thought + "</think>\n\n" + answer
    parts, finished = read(thinking(Plain, thinking=inside), pieces(text, cuts))
    expected = [("Reasoning", thought.strip())] if thought.strip() else []
    expected += [("Content", answer.lstrip())] if answer.strip() else []
    assert joined(parts) == expected
    assert finished.reasoning_tokens


@given(st.text(alphabet="<think>/ \nab", max_size=60), st.booleans(), CUTS)
def test_any_thoughts_are_the_same_in_any_pieces(text: str, inside: bool, cuts: list[int]) -> None:
    def parser() -> Thinking:
        form = FORMATS["hermes"]
        return thinking(lambda: calls(form), thinking=inside, marker=form.marker)

    whole, _ = read(parser(), [Piece(text, "base", 0.5, 1)] if text else [])
    parts, _ = read(parser(), pieces(text, cuts))
    assert joined(parts) == joined(whole)


def test_who_does_not_think_says_all_of_it() -> None:
    parts, finished = read(thinking(Plain), pieces(" It is <think>", [3]))
    assert joined(parts) == [("Content", " It is <think>")]
    assert finished.reasoning_tokens == 0


def test_a_call_ends_thoughts() -> None:
    form = FORMATS["hermes"]
    text = "I need it. " + form.written([ToolCall("", "f", "{}")])
    parser = thinking(lambda: calls(form), thinking=True, marker=form.marker)
    parts, finished = read(parser, pieces(text, [4, 30]))
    assert joined(parts) == [("Reasoning", "I need it."), (0, "f {}")]
    assert finished.finish_reason == "tool_calls"


def test_thoughts_that_are_cut_are_thoughts() -> None:
    parts, finished = read(thinking(Plain), pieces("<think>\nSo far </thi", [9]), "length")
    assert joined(parts) == [("Reasoning", "So far </thi")]
    assert finished.finish_reason == "length"
