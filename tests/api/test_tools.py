"""Tools through the official client, on real engines: models that learned no format, and yet each
call is one by its schema, whoever wrote which token."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from tests.conftest import REPEATABLE, Server
from tests.thorough import first

QUESTION = [{"role": "user", "content": "What is the capital of Galicor?"}]

LOOKUP = {
    "type": "object",
    "properties": {
        "entity": {"type": "string", "maxLength": 12},
        "attribute": {"enum": ["capital", "river", "king"]},
    },
    "required": ["entity", "attribute"],
}
TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"anyOf": [{"type": "integer", "maximum": 99}, {"type": "null"}]},
                "next": {"$ref": "#/$defs/node"},
            },
            "required": ["value"],
        }
    },
}
CODE = {
    "type": "object",
    "properties": {"code": {"type": "string", "pattern": "^[A-F]{2}-[0-9]{3}$"}},
    "required": ["code"],
    "additionalProperties": False,
}
SCHEMAS = {"lookup": LOOKUP, "tree": TREE, "code": CODE, "now": {}}
MODELS = ["demo", "demo:base", "demo:aligned", "demo@0"]


def tools(*names: str) -> list[Any]:
    return [
        {"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}}
        for name in names or SCHEMAS
    ]


@pytest.fixture(scope="module")
def client(live: Server):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": "demo", "messages": QUESTION, "temperature": 0, "max_tokens": 200}
    return client.chat.completions.create(**(asked | fields))


def check(choice: Any) -> None:
    """A call, or the beginning of one that was cut."""
    calls = choice.message.tool_calls
    assert choice.finish_reason in ("tool_calls", "length")
    assert choice.message.content is None or not calls
    for number, call in enumerate(calls or ()):
        if choice.finish_reason == "length" and number == len(calls) - 1:
            continue  # it may be whole or not
        arguments = json.loads(call.function.arguments)
        schema = SCHEMAS[call.function.name] or {"type": "object", "maxProperties": 0}
        assert jsonschema_rs.is_valid(schema, arguments)


@pytest.mark.parametrize("model", first(2, MODELS))
@pytest.mark.parametrize("name", [*SCHEMAS])
def test_arguments_are_by_their_schema_whoever_writes(client: openai.OpenAI, model: str, name: str):
    choice = {"type": "function", "function": {"name": name}}
    for temperature in (0, 1):
        answer = ask(
            client, model=model, tools=tools(), tool_choice=choice, temperature=temperature, seed=1
        )
        check(answer.choices[0])
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == name


@given(seed=st.integers(0, 2**32), chosen=st.sets(st.sampled_from([*SCHEMAS]), min_size=1))
@limits(REPEATABLE, max_examples=8)
def test_what_is_demanded_is_called(client: openai.OpenAI, seed: int, chosen: set[str]):
    answer = ask(client, tools=tools(*chosen), tool_choice="required", temperature=1, seed=seed)
    check(answer.choices[0])
    assert {call.function.name for call in answer.choices[0].message.tool_calls or ()} <= chosen


def test_a_streamed_call_is_the_same(client: openai.OpenAI):
    asked = {"tools": tools("lookup"), "tool_choice": "required"}
    (call,) = ask(client, parallel_tool_calls=False, **asked).choices[0].message.tool_calls
    deltas = [
        delta
        for chunk in ask(client, stream=True, parallel_tool_calls=False, **asked)
        for choice in chunk.choices
        for delta in choice.delta.tool_calls or ()
    ]
    first, *more = deltas
    assert (first.index, first.type, first.function.name) == (0, "function", "lookup")
    assert first.function.arguments == ""
    assert first.id.startswith("call_")
    assert all(each.id is None and each.function.name is None for each in more)
    assert len(more) > 1
    assert "".join(each.function.arguments for each in more) == call.function.arguments


@pytest.mark.parametrize("model", MODELS)
def test_a_chat_with_tools_that_are_not_needed_is_a_chat(client: openai.OpenAI, model: str):
    (choice,) = ask(client, model=model, tools=tools()).choices
    if choice.message.tool_calls:
        check(choice)
    else:
        assert choice.message.content
        assert choice.finish_reason in ("stop", "length")


def test_a_call_and_its_result_are_read(client: openai.OpenAI, live: Server):
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "lookup", "arguments": '{"entity": "Galicor"}'},
            }
        ],
    }
    result = {"role": "tool", "tool_call_id": "call_1", "content": "Vantis"}
    messages = [*QUESTION, called, result]
    assert ask(client, messages=messages, tools=tools("lookup")).choices[0].message.content
    body = {"model": "demo", "messages": messages, "tools": tools("lookup")}
    shown = httpx.post(f"{live.url}/apply-template", json=body).json()
    for role in ("base", "aligned"):
        assert '"arguments": {"entity": "Galicor"}' in shown[role]
        assert "Vantis" in shown[role]
        assert "lookup" in shown[role]
    counted = httpx.post(f"{live.url}/tokenize", json=body).json()["count"]
    answer = ask(client, messages=messages, tools=tools("lookup"))
    assert answer.usage.prompt_tokens == counted
