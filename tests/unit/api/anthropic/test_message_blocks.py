"""Anthropic's messages become a conversation of ours."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.api.anthropic.requests import Prompt
from server.core import Message, ToolCall

Json = dict[str, Any]


def text(said: str) -> Json:
    return {"type": "text", "text": said, "cache_control": {"type": "ephemeral", "ttl": "1h"}}


def use(number: int, **arguments: Any) -> Json:
    return {"type": "tool_use", "id": f"t{number}", "name": "look", "input": arguments}


def result(number: int, content: Any = "found", **more: Any) -> Json:
    return {"type": "tool_result", "tool_use_id": f"t{number}", "content": content, **more}


def user(*content: Any) -> Json:
    plain = len(content) == 1 and isinstance(content[0], str)
    return {"role": "user", "content": content[0] if plain else list(content)}


def assistant(*content: Any) -> Json:
    return user(*content) | {"role": "assistant"}


def prompt(*messages: Json, **fields: Any) -> Prompt:
    return Prompt.model_validate({"model": "fox", "messages": [*messages], **fields})


def turns(*messages: Json, **fields: Any) -> list[Message]:
    return list(prompt(*messages, **fields).chat().messages)


def refusal(*messages: Json, **fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        prompt(*messages, **fields)
    (error,) = caught.value.errors()[-1:]
    return error.get("ctx", {}).get("param") or error["msg"]


def test_the_system_prompt_comes_first():
    assert turns(user("Hi"), system="Be brief.")[0] == Message("system", "Be brief.")
    blocks = [text("Be brief."), text("Be kind.")]
    assert turns(user("Hi"), system=blocks)[0] == Message("system", "Be brief.\nBe kind.")
    assert turns(user("Hi"), system=[]) == [Message("user", "Hi")]


def test_an_attribution_is_no_part_of_it():
    billed = text("x-anthropic-billing-header: cc_version=2.1.181; cch=ab12;")
    assert turns(user("Hi"), system=[billed, text("Be brief.")])[0].content == "Be brief."
    assert turns(user("Hi"), system=[billed]) == [Message("user", "Hi")]
    # Elsewhere it is text as any other.
    assert "billing" in turns(user("Hi"), system=[text("Be brief."), billed])[0].content


def test_a_system_message_may_stand_anywhere():
    said = {"role": "system", "content": [text("By the way"), text("it rains")]}
    assert turns(user("Hi"), said)[1] == Message("system", "By the way\nit rains")


def test_neighbours_of_one_role_are_one_turn():
    asked = turns(user("a"), user(text("b"), text("c")), assistant("d"), assistant("e"), user("f"))
    assert asked == [
        Message("user", "a\nb\nc"),
        Message("assistant", "d\ne"),
        Message("user", "f"),
    ]


def test_a_turn_has_its_thoughts_and_its_calls():
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    redacted = {"type": "redacted_thinking", "data": "xyz"}
    answer = assistant(thinking, redacted, text("Let me "), use(1, of="é"), use(2), text("see."))
    assert turns(user("Hi"), answer, user(result(1), result(2)))[1] == Message(
        "assistant",
        "Let me see.",
        calls=(ToolCall("t1", "look", '{"of": "é"}'), ToolCall("t2", "look", "{}")),
        reasoning="Hm.",
    )


def test_results_come_before_what_is_said_to_them():
    asked = turns(
        user("Hi"),
        assistant(use(1), use(2), use(3), use(4)),
        user(
            result(2, [text("two"), text("lines")]),
            result(1, None),
            text("Go"),
            result(3, "no such file", is_error=True),
            result(4, is_error=False),
            text("on."),
        ),
    )
    assert asked[2:] == [
        Message("tool", "two\nlines", call_id="t2"),
        Message("tool", "", call_id="t1"),
        Message("tool", "Error: no such file", call_id="t3"),
        Message("tool", "found", call_id="t4"),
        Message("user", "Go\non."),
    ]


def test_a_result_answers_a_call_before_it():
    where = "messages.0.content.0.tool_use_id"
    assert refusal(user(result(1)), assistant(use(1)), user(result(1))) == where
    other = "messages.2.content.1.tool_use_id"
    assert refusal(user("Hi"), assistant(use(1)), user(result(1), result(2))) == other
    # Of any turn before: some clients send results late.
    assert turns(user("Hi"), assistant(use(1)), user("wait"), assistant("ok"), user(result(1)))


def test_a_last_message_of_the_assistants_is_gone_on_with():
    begun = prompt(user("Hi"), assistant(text("Once "), text("upon"))).chat()
    assert begun.end == "continued"
    assert begun.begun == "Once upon"
    assert prompt(user("Hi")).chat().end == "open"
    assert refusal(user("Hi"), assistant(text("x"), use(1))) == "messages"


@pytest.mark.parametrize(
    ("block", "where"),
    [
        ({"type": "image", "source": {}}, "type 'image'"),
        ({"type": "document", "source": {}}, "type 'document'"),
        ({"type": "search_result"}, "type 'search_result'"),
        ({"type": "tool_use", "id": "a", "name": "b", "input": {}}, "type 'tool_use'"),
        ({}, "type 'None'"),
        ({"type": ["text"]}, "type \"['text']\""),
    ],
)
def test_other_blocks_are_refused_by_their_type(block: Json, where: str):
    assert where in refusal(user(text("x"), block))
    assert where in refusal(user("x"), system=[block])
    if block.get("type") != "tool_use":
        assert where in refusal(user("x"), assistant(block))
        assert where in refusal(user("x"), assistant(use(1)), user(result(1, [block])))


@pytest.mark.parametrize("odd", ["x", 5, None, ["text"], {"role": "tool"}, {"role": ["user"]}])
def test_what_is_no_message_or_block_at_all_is_refused(odd: Any):
    assert "message is an object" in refusal(user("x"), odd)
    if not isinstance(odd, dict):
        assert "should be an object" in refusal(user(text("x"), odd))


def test_thoughts_of_earlier_turns_can_be_taken_away():
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    talk = [user("a"), assistant(thinking, text("b")), user("c")]
    talk += [assistant(thinking, text("d")), user("e")]

    def left(*edits: Json) -> list[str]:
        management = {"edits": [*edits]}
        asked = turns(*talk, context_management=management)
        return [turn.reasoning for turn in asked if turn.role == "assistant"]

    clear = {"type": "clear_thinking_20251015"}
    assert left() == left(clear | {"keep": "all"}) == ["Hm.", "Hm."]
    assert left(clear | {"keep": {"type": "all"}}) == ["Hm.", "Hm."]
    assert left(clear) == ["", "Hm."]
    assert left(clear | {"keep": {"type": "thinking_turns", "value": 1}}) == ["", "Hm."]
    assert left(clear | {"keep": {"type": "thinking_turns", "value": 2}}) == ["Hm.", "Hm."]
    other = {"edits": [{"type": "clear_tool_uses_20250919"}]}
    assert "clear_tool_uses_20250919" in refusal(*talk, context_management=other)
