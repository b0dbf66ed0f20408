"""What Anthropic's fields ask for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from server.api.anthropic.requests import MessagesRequest
from server.api.ask import Ask, Chat, Tools
from server.core import Tool

Json = dict[str, Any]

BODY: Json = {"model": "fox", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
LOOK: Json = {"name": "look", "description": "Looks.", "input_schema": SCHEMA, "strict": True}
ADD: Json = {"type": "custom", "name": "add", "input_schema": SCHEMA, "cache_control": {}}


def ask(**fields: Any) -> Ask:
    return MessagesRequest.model_validate(BODY | fields).ask()


def chat(**fields: Any) -> Chat:
    prompt = ask(**fields).prompt
    assert isinstance(prompt, Chat)
    return prompt


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        ask(**fields)
    error = caught.value.errors()[0]
    return error.get("ctx", {}).get("param") or ".".join(map(str, error["loc"]))


def test_what_is_asked_of_the_answer():
    asked = ask(temperature=0.5, top_p=0.9, top_k=3, stop_sequences=["x", "y"], stream=True)
    assert asked.model == "fox"
    assert asked.sampling == {"temperature": 0.5, "top_p": 0.9, "top_k": 3}
    assert asked.answer.max_tokens == 5
    assert asked.answer.stop == ("x", "y")
    assert asked.stream
    assert asked.running_usage
    assert not asked.answer.traced
    plain = ask()
    assert plain.sampling == {}
    assert not plain.stream
    assert not plain.no_stop
    assert plain.passed_over == ()
    assert ask(stop_sequences=[]).no_stop


def test_our_own_field_is_read():
    asked = ask(nudging={"gamma": 0.2, "trace": True})
    assert asked.nudging == {"gamma": 0.2}
    assert asked.answer.traced
    assert refusal(nudging={"alpha": 1}) == "nudging.alpha"


def test_a_schema_is_followed():
    form = {"type": "json_schema", "schema": SCHEMA}
    assert ask(output_config={"format": form}).schema == SCHEMA
    assert ask(output_config={}).schema is None


def test_what_cannot_be_held_to_is_said():
    asked = ask(thinking={"type": "adaptive"}, output_config={"effort": "high"})
    assert asked.passed_over == ("thinking", "output_config.effort")
    assert ask(thinking={"type": "enabled", "budget_tokens": 4000}).passed_over == ("thinking",)
    assert ask(thinking={"type": "disabled"}).passed_over == ()


def test_templates_with_a_switch_for_thinking_are_told():
    assert chat().kwargs is None
    assert chat(thinking={"type": "disabled"}).kwargs == {
        "enable_thinking": False,
        "thinking": False,
    }
    assert chat(thinking={"type": "adaptive"}).kwargs == {"enable_thinking": True, "thinking": True}


def test_tools_are_read():
    look, add = Tool("look", "Looks.", SCHEMA, strict=True), Tool("add", "", SCHEMA)
    both = [LOOK, ADD]
    assert chat(tools=both).tools == Tools([look, add])
    assert chat(tools=both, tool_choice={"type": "auto"}).tools == Tools([look, add])
    alone = {"type": "auto", "disable_parallel_tool_use": True}
    assert chat(tools=both, tool_choice=alone).tools == Tools([look, add], parallel=False)
    must = {"type": "any"}
    assert chat(tools=both, tool_choice=must).tools == Tools([look, add], demanded=True)
    named = {"type": "tool", "name": "add"}
    assert chat(tools=both, tool_choice=named).tools == Tools(
        [look, add], callable=["add"], demanded=True
    )
    assert chat(tools=both, tool_choice={"type": "none"}).tools is None
    assert chat(tools=[]).tools is None


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"service_tier": "best"}, "service_tier"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0"),
        ({"tools": [LOOK, {"type": "web_search_20250305", "name": "w"}]}, "tools.1"),
        ({"tools": [LOOK | {"defer_loading": True}]}, "tools.0"),
        ({"tools": [LOOK | {"input_examples": [{"a": 1}]}]}, "tools.0"),
        ({"tools": [LOOK | {"allowed_callers": ["code_execution_20250825"]}]}, "tools.0"),
        ({"tools": [LOOK | {"name": "a b"}]}, "tools.0.name"),
        ({"tools": [{"name": "look"}]}, "tools.0.input_schema"),
        ({"tools": [LOOK, LOOK]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [LOOK], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"tools": [LOOK], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ],
)
def test_what_is_not_served_is_named(fields: Json, where: str):
    assert refusal(**fields) == where


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "u"}, "service_tier": "auto", "speed": "standard"},
        {"tools": [LOOK | {"defer_loading": False, "allowed_callers": ["direct"]}]},
        {"tools": [LOOK | {"eager_input_streaming": True, "input_examples": []}]},
        {"cache_control": {"type": "ephemeral"}, "mcp_servers": [], "container": None},
        {"context_management": None, "tool_choice": {"type": "auto"}, "max_tokens": 5.0},
        {"context_management": {"edits": []}, "stream": False, "system": None},
    ],
)
def test_what_asks_for_nothing_is_taken(fields: Json):
    assert ask(**fields).passed_over == ()


def test_so_many_blocks_in_all_as_in_one_message():
    some = [{"type": "text", "text": ""}] * 9000
    endless = [{"role": "user", "content": some}, {"role": "user", "content": some}]
    assert refusal(messages=endless) == "messages"
    results = {"role": "user", "content": [{"type": "tool_result", "content": some}] * 2}
    assert refusal(messages=[results]) == "messages"
