"""Tools in responses, with engines that play a text: what is called comes as items, whole and
streamed alike, and what came of it can be sent back, or gone on from."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.conftest import ROOT
from tests.unit.api.served import application
from tests.unit.api.test_tool_chats import ARGUMENTS, LOOKUP, NOW, SAID, TEXTS, engines

Json = dict[str, Any]

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOLS = [{"type": "function", **each} for each in (LOOKUP, NOW)]
QUESTION = "What does Ava do?"
USED = ("call", "said", "two", "talks", "thinks", "thinkscalls", "endless")


@pytest.fixture(scope="module")
async def app() -> AsyncIterator[Any]:
    given: Json = {"engines": {}, "models": {}}
    for name in USED:
        for role, engine in engines(TEXTS[name]).items():
            given["engines"][f"{name}-{role}"] = {
                "backend": "scripted",
                "model": str(ROOT / engine["model"]),
                "args": {"script": engine["script"], "context_length": 40_000},
            }
        model = {"base": f"{name}-base", "aligned": f"{name}-aligned"}
        model |= {"sampling": {"temperature": 0}}
        if name.startswith("thinks"):
            model["reasoning"] = "think"
        given["models"][name] = model
        given["models"][f"{name}-cross"] = model | {"aligned": f"{name}-small"}
        given["models"][f"{name}-refuses"] = model | {"tools": "refuse"}
        given["models"][f"{name}-unseen"] = model | {"tools": "unseen"}
    async with application(given) as found:
        yield found


@pytest.fixture(scope="module")
async def client(app: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    transport = httpx.ASGITransport(app)
    async with openai.AsyncOpenAI(
        base_url="http://test/v1",
        api_key="none",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=transport),
    ) as asking:
        yield asking


async def ask(client: openai.AsyncOpenAI, model: str, asked: Any = QUESTION, **more: Any) -> Json:
    fields = {"model": model, "input": asked, "tools": TOOLS} | more
    found = (await client.responses.create(**fields)).to_dict()
    Response.model_validate(found)
    stream = await client.responses.create(**fields, stream=True)
    events = [EVENT.validate_python(event.to_dict()) async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert bare(events[-1].response.to_dict()) == bare(found)
    return found


def bare(response: Json) -> Json:
    """But for ids and times."""
    name = response["id"].removeprefix("resp_")
    shown = json.loads(
        json.dumps(response | {"created_at": 0, "completed_at": 0}).replace(name, "")
    )
    for item in shown["output"]:
        item.pop("call_id", None)
    return shown


def called(response: Json) -> list[tuple[str, Json]]:
    return [
        (item["name"], json.loads(item["arguments"]))
        for item in response["output"]
        if item["type"] == "function_call"
    ]


def kinds(response: Json) -> list[str]:
    return [item["type"] for item in response["output"]]


PAIRS = ["call", "call-cross", "call:base", "call:aligned", "call@0", "call@2"]


@pytest.mark.parametrize("model", PAIRS)
@pytest.mark.parametrize("trace", [False, True])
async def test_a_call_is_an_item_whoever_wrote_it(
    client: openai.AsyncOpenAI, model: str, trace: bool
):
    found = await ask(client, model, extra_body={"nudging": {"trace": trace}})
    assert kinds(found) == ["function_call"]
    assert called(found) == [("lookup", ARGUMENTS)]
    [item] = found["output"]
    assert item["status"] == found["status"] == "completed"
    assert item["call_id"].startswith("call_")
    assert ("nudging" in item) == trace


async def test_what_is_said_and_thought_comes_in_front(client: openai.AsyncOpenAI):
    said = await ask(client, "said")
    assert kinds(said) == ["message", "function_call"]
    assert said["output"][0]["content"][0]["text"].strip() == SAID.strip()
    thinks = await ask(client, "thinks")
    assert kinds(thinks) == ["reasoning", "message"]
    assert thinks["output"][0]["content"][0]["text"].strip() == "She has a job."
    assert thinks["output"][1]["content"][0]["text"].strip() == "She is a smith."
    assert thinks["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert kinds(await ask(client, "thinkscalls")) == ["reasoning", "function_call"]


async def test_two_calls_are_two_items_unless_one_is_asked_for(client: openai.AsyncOpenAI):
    found = await ask(client, "two")
    assert called(found) == [("lookup", ARGUMENTS)] * 2
    assert len({item["call_id"] for item in found["output"]}) == 2
    assert len(called(await ask(client, "two", parallel_tool_calls=False))) == 1


async def test_who_need_not_call_talks_and_who_must_calls(client: openai.AsyncOpenAI):
    assert kinds(await ask(client, "talks")) == ["message"]
    assert kinds(await ask(client, "talks", tool_choice="none")) == ["message"]
    assert called(await ask(client, "call", tool_choice="required"))
    named = await ask(
        client,
        "talks",
        tool_choice={"type": "function", "name": "now"},
        max_output_tokens=200,
    )
    assert [name for name, _ in called(named)] == ["now"]
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "now"}],
    }
    found = await ask(client, "talks", tool_choice=allowed, max_output_tokens=200)
    assert {name for name, _ in called(found)} == {"now"}


async def test_a_call_that_was_cut_says_so(client: openai.AsyncOpenAI):
    found = await ask(client, "endless", max_output_tokens=60)
    assert found["status"] == "incomplete"
    assert found["output"][-1]["type"] == "function_call"
    assert found["output"][-1]["status"] == "incomplete"


@pytest.mark.parametrize("stored", [False, True])
async def test_what_came_of_a_call_is_told(client: openai.AsyncOpenAI, stored: bool):
    first = await client.responses.create(model="said", input=QUESTION, tools=TOOLS)
    call = first.output[-1]
    assert call.type == "function_call"
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "a smith"}
    if stored:
        more: Json = {"input": [output], "previous_response_id": first.id}
    else:
        items = [item.to_dict() for item in first.output]
        more = {"input": [{"role": "user", "content": QUESTION}, *items, output]}
    second = await client.responses.create(model="talks", tools=TOOLS, **more)
    assert second.output_text.strip() == "No tool is needed."
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + 10


async def test_both_ways_the_models_read_the_same(client: openai.AsyncOpenAI):
    first = await client.responses.create(model="said", input=QUESTION, tools=TOOLS)
    call = first.output[-1]
    assert call.type == "function_call"
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "a smith"}
    items = [item.to_dict() for item in first.output]
    whole = [{"role": "user", "content": QUESTION}, *items, output]
    chained = await client.responses.create(
        model="talks", tools=TOOLS, input=[output], previous_response_id=first.id
    )
    again = await client.responses.create(model="talks", tools=TOOLS, input=whole)
    assert chained.usage == again.usage


class Lookup(BaseModel):
    entity: str
    attribute: str


async def test_the_client_parses_calls(client: openai.AsyncOpenAI):
    tool = openai.pydantic_function_tool(Lookup, name="lookup")
    found = await client.responses.parse(model="call", input=QUESTION, tools=[tool])
    [item] = found.output
    assert item.type == "function_call"
    assert item.parsed_arguments == Lookup(**ARGUMENTS)
    async with client.responses.stream(model="call", input=QUESTION, tools=[tool]) as stream:
        deltas = [
            event.delta
            async for event in stream
            if event.type == "response.function_call_arguments.delta"
        ]
        final = await stream.get_final_response()
    assert final.output[0].parsed_arguments == Lookup(**ARGUMENTS)
    assert json.loads("".join(deltas)) == ARGUMENTS


async def test_a_model_may_be_set_to_refuse_tools_or_to_pass_over_them(
    client: openai.AsyncOpenAI, app: Any
):
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(client, "talks-refuses")
    assert refused.value.param == "tools"
    raw = await client.responses.with_raw_response.create(
        model="talks-unseen", input=QUESTION, tools=TOOLS
    )
    assert raw.headers["x-nudge-tools"] == "unseen"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [TOOLS[0] | {"parameters": {"type": "array"}}]}, "tools.0.parameters"),
        ({"tools": [TOOLS[0] | {"name": "a b"}]}, "tools.0.name"),
        ({"tool_choice": {"type": "function", "name": "look"}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"extra_body": {"nudging": {"policy": "reference"}}}, "nudging.policy"),
    ],
)
async def test_what_does_not_fit_is_named(client: openai.AsyncOpenAI, more: Json, param: str):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(
            **({"model": "call", "input": QUESTION, "tools": TOOLS} | more)
        )
    assert refused.value.param == param


async def test_effort_is_as_in_chats(client: openai.AsyncOpenAI):
    found = await ask(client, "thinks", reasoning={"effort": "medium", "summary": "auto"})
    assert found["reasoning"] == {"effort": "medium", "summary": "auto", "generate_summary": None}
    assert kinds(await ask(client, "talks", reasoning={"effort": "none"})) == ["message"]


SHELL = {
    "type": "function",
    "name": "shell",
    "description": "Runs a command. " * 40,
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "command": {"type": "array", "items": {"type": "string"}},
            "workdir": {"type": "string"},
            "timeout_ms": {"type": "number"},
            "with_escalated_permissions": {"type": "boolean"},
        },
        "required": ["command"],
        "additionalProperties": False,
    },
}
PLAN = {
    "type": "function",
    "name": "update_plan",
    "description": "Updates the plan.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "explanation": {"type": "string"},
            "plan": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"step": {"type": "string"}, "status": {"type": "string"}},
                    "required": ["step", "status"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["plan"],
        "additionalProperties": False,
    },
}


def item(role: str, text: str) -> Json:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


async def test_a_coding_agents_requests_are_answered(client: openai.AsyncOpenAI):
    """In the shape of Codex CLI's: a long system prompt, tools, whole conversations, streams."""
    rules = "You are a coding agent. Be precise, safe and helpful. " * 250
    history = [
        item("developer", "<permissions>\nAsk before you write.\n</permissions>"),
        item("user", "<environment_context>\n<cwd>/home</cwd>\n</environment_context>"),
        item("user", "What does Ava do?"),
    ]
    fields: Json = {
        "instructions": rules,
        "tools": [SHELL, PLAN, *TOOLS],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "store": False,
        "include": [],
        "extra_body": {
            "reasoning": None,
            "prompt_cache_key": "0199-abcd",
            "client_metadata": {"x-codex-installation-id": "1"},
        },
    }
    first = await ask(client, "call", history, **fields)
    assert called(first) == [("lookup", ARGUMENTS)]
    assert first["usage"]["input_tokens"] > 3000
    [call] = first["output"]
    history += [
        {key: call[key] for key in ("type", "name", "arguments", "call_id")},
        {"type": "function_call_output", "call_id": call["call_id"], "output": "a smith"},
    ]
    second = await ask(client, "talks", history, **fields)
    assert kinds(second) == ["message"]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
