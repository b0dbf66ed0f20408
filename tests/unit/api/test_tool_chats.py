"""Tools in a chat, with engines that play a text: who wrote what makes no difference to what the
client gets, and all that it gets is a call by its schema."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from server.api.openai.schemas import ChatCompletion, ChatCompletionChunk
from tests.conftest import ROOT
from tests.thorough import first
from tests.unit.api.served import application

Json = dict[str, Any]

CALL = (
    '<tool_call>\n{"name": "lookup", "arguments": {"entity": "Ava", "attribute": "job"}}\n'
    "</tool_call>"
)
SAID = "I'll look it up.\n"
ARGUMENTS = {"entity": "Ava", "attribute": "job"}
THOUGHT = "<think>\nShe has a job.\n</think>\n\nShe is a smith."

ENTITY = {"type": "object", "properties": {"entity": {"type": "string"}, "attribute": {}}}
LOOKUP = {"name": "lookup", "description": "A fact.", "parameters": ENTITY}
NOW = {"name": "now", "description": "The time."}
TOOLS = [{"type": "function", "function": each} for each in (LOOKUP, NOW)]
ASK = [{"role": "user", "content": "What does Ava do?"}]


def engines(text: str) -> Json:
    """Two that write a text, the base model unsure at each third word; and one that doesn't know
    of tools at all."""
    words = text.split(" ")
    pieces = [" " * bool(i) + word for i, word in enumerate(words)]
    script = [[piece, 0.2 if i % 3 == 2 else 0.9] for i, piece in enumerate(pieces)]
    return {
        "base": {"model": "models/demo/base", "script": [[" ", 0.9], *script]},
        "aligned": {"model": "models/demo/aligned", "script": [[text, 0.9]]},
        "small": {"model": "models/demo/aligned-1k", "script": [[text, 0.9]]},
    }


TEXTS = {
    "call": CALL,
    "said": SAID + CALL,
    "two": f"{CALL}\n{CALL}",
    "talks": "No tool is needed. ",
    "city": '{"city": "Rome"}',
    "thinks": THOUGHT,
    "thinkslong": "<think>\n" + "".join(f"Is it {n}? " for n in range(90)),
    "thinkscalls": "<think>\nI look.\n</think>\n\n" + CALL,
    "endless": '<tool_call>\n{"name": "lookup", "arguments": {"entity": "' + "a b " * 200,
}


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    given: Json = {"engines": {}, "models": {}}
    for name, text in TEXTS.items():
        for role, engine in engines(text).items():
            given["engines"][f"{name}-{role}"] = {
                "backend": "scripted",
                "model": str(ROOT / engine["model"]),
                "args": {"script": engine["script"]},
            }
        model = {"base": f"{name}-base", "aligned": f"{name}-aligned"}
        model |= {"sampling": {"temperature": 0}, "policies": ["nudging", "reference"]}
        if name.startswith("thinks"):
            model["reasoning"] = "think"
        given["models"][name] = model
        given["models"][f"{name}-cross"] = model | {"aligned": f"{name}-small"}
    async with application(given) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asking:
            yield asking


async def ask(client: httpx.AsyncClient, model: str, **more: Any) -> Json:
    body = {"model": model, "messages": ASK, "tools": TOOLS} | more
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return ChatCompletion.model_validate(response.json()).model_dump() and response.json()


async def streamed(client: httpx.AsyncClient, model: str, **more: Any) -> Json:
    """A message put together of its deltas, as the official client does it."""
    body = {"model": model, "messages": ASK, "tools": TOOLS, "stream": True} | more
    response = await client.post("/v1/chat/completions", json=body)
    message: Json = {}
    finish = None
    for line in response.text.splitlines():
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = json.loads(line[6:])
        ChatCompletionChunk.model_validate(chunk)
        for choice in chunk["choices"]:
            finish = choice["finish_reason"] or finish
            _add(message, choice["delta"])
    return {"message": message, "finish_reason": finish}


def _add(into: Json, delta: Json) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value:
                calls = into.setdefault(name, [])
                if call["index"] == len(calls):
                    assert call["id"]
                    assert call["type"] == "function"
                    assert call["function"]["arguments"] == ""
                    calls.append({"function": {}})
                _add(calls[call["index"]], {k: v for k, v in call.items() if k != "index"})
        elif isinstance(value, dict):
            _add(into.setdefault(name, {}), value)
        elif name in ("role", "id", "type", "name"):
            into[name] = value
        else:
            into[name] = into.get(name, "") + value


def called(message: Json) -> list[tuple[str, Json]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message["tool_calls"]
    ]


PAIRS = ["call", "call-cross", "call:base", "call:aligned", "call@0", "call@2"]


@pytest.mark.parametrize("model", PAIRS)
async def test_a_call_is_a_call_whoever_wrote_it(client: httpx.AsyncClient, model: str):
    (choice,) = (await ask(client, model))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert called(choice["message"]) == [("lookup", ARGUMENTS)]
    stream = await streamed(client, model)
    assert stream["finish_reason"] == "tool_calls"
    assert called(stream["message"]) == [("lookup", ARGUMENTS)]
    assert stream["message"]["content"] == ""


@pytest.mark.parametrize("model", ["said", "said-cross"])
async def test_what_is_said_in_front_of_a_call_is_content(client: httpx.AsyncClient, model: str):
    (choice,) = (await ask(client, model))["choices"]
    assert choice["message"]["content"] == SAID
    assert called(choice["message"]) == [("lookup", ARGUMENTS)]
    assert (await streamed(client, model))["message"]["content"] == SAID


async def test_several_calls_or_one_alone(client: httpx.AsyncClient):
    (choice,) = (await ask(client, "two"))["choices"]
    assert called(choice["message"]) == [("lookup", ARGUMENTS)] * 2
    first, second = choice["message"]["tool_calls"]
    assert first["id"] != second["id"]
    (choice,) = (await ask(client, "two", parallel_tool_calls=False))["choices"]
    assert called(choice["message"]) == [("lookup", ARGUMENTS)]


async def test_an_answer_goes_on_and_then_calls(client: httpx.AsyncClient):
    begun = {"role": "assistant", "content": "I'll "}
    more = {"messages": [*ASK, begun], "continue_final_message": True}
    (choice,) = (await ask(client, "said:aligned", **more))["choices"]
    assert called(choice["message"]) == [("lookup", ARGUMENTS)]
    begun["content"] += "<tool_call>"
    body = {"model": "said", "tools": TOOLS} | more
    response = await client.post("/v1/chat/completions", json=body)
    assert response.json()["error"]["param"] == "continue_final_message"


async def test_several_answers_have_calls_of_their_own(client: httpx.AsyncClient):
    one, other = (await ask(client, "call", n=2))["choices"]
    assert called(one["message"]) == called(other["message"])
    assert one["message"]["tool_calls"][0]["id"] != other["message"]["tool_calls"][0]["id"]


async def test_who_calls_nothing_is_answered_as_ever(client: httpx.AsyncClient):
    offered, plain = await ask(client, "talks"), await ask(client, "talks", tools=None)
    assert offered["choices"] == plain["choices"]
    assert offered["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "model", ["talks", "talks-cross", *first(0, ["talks:base", "talks:aligned"])]
)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "now"}}])
async def test_a_call_that_is_demanded_is_made_by_who_wanted_to_talk(
    client: httpx.AsyncClient, model: str, choice: Any
):
    answer = await ask(client, model, tool_choice=choice, max_tokens=300)
    (choice,) = answer["choices"]
    if choice["finish_reason"] == "tool_calls":
        for name, arguments in called(choice["message"]):
            assert name in ("lookup", "now")
            assert isinstance(arguments, dict)
    else:
        assert choice["finish_reason"] == "length"
    assert not choice["message"]["content"]
    if not isinstance(choice, str):
        assert choice["message"]["tool_calls"]


async def test_a_call_that_is_cut_has_what_there_is_of_it(client: httpx.AsyncClient):
    (choice,) = (await ask(client, "endless", max_tokens=80))["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "lookup"
    assert call["function"]["arguments"].startswith('{"entity": "a b a b')
    assert not choice["message"]["content"]


async def test_a_call_may_repeat_itself(client: httpx.AsyncClient):
    """No loop guard ends it."""
    (choice,) = (await ask(client, "endless", max_tokens=250))["choices"]
    assert choice["finish_reason"] == "length"


async def test_the_older_shape_is_answered_in_the_older_shape(client: httpx.AsyncClient):
    older = {"tools": None, "functions": [LOOKUP, NOW]}
    (choice,) = (await ask(client, "two", **older))["choices"]
    assert choice["finish_reason"] == "function_call"
    call = choice["message"]["function_call"]
    assert (call["name"], json.loads(call["arguments"])) == ("lookup", ARGUMENTS)
    assert "tool_calls" not in choice["message"]
    stream = await streamed(client, "two", **older)
    assert stream["message"]["function_call"] == call
    assert stream["finish_reason"] == "function_call"


async def test_a_trace_says_who_wrote_a_call(client: httpx.AsyncClient):
    (choice,) = (await ask(client, "call", nudging={"trace": True}))["choices"]
    pieces = choice["nudging"]["pieces"]
    (call,) = choice["message"]["tool_calls"]
    text = "".join(piece["text"] for piece in pieces)
    assert text == "lookup" + call["function"]["arguments"]
    assert {piece["speaker"] for piece in pieces} == {"base", "aligned"}


CITY = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}


@pytest.mark.parametrize(("model", "calls"), [("call", True), ("city", False)])
async def test_an_answer_is_a_call_or_by_its_schema(
    client: httpx.AsyncClient, model: str, calls: bool
):
    schema = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    (choice,) = (await ask(client, f"{model}:aligned", response_format=schema))["choices"]
    if calls:
        assert called(choice["message"]) == [("lookup", ARGUMENTS)]
    else:
        assert json.loads(choice["message"]["content"]) == {"city": "Rome"}


# -- thoughts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["thinks", "thinks-cross", "thinks:aligned"])
async def test_thoughts_have_fields_of_their_own(client: httpx.AsyncClient, model: str):
    answer = await ask(client, model, tools=None)
    (choice,) = answer["choices"]
    said, thought = "She is a smith.", "She has a job."
    assert choice["message"]["content"] == said
    assert choice["message"]["reasoning"] == thought
    assert choice["message"]["reasoning_content"] == thought
    details = answer["usage"]["completion_tokens_details"]
    assert 0 < details["reasoning_tokens"] < answer["usage"]["completion_tokens"]
    message = (await streamed(client, model, tools=None))["message"]
    assert (message["content"], message["reasoning"]) == (said, thought)
    assert message["reasoning_content"] == thought


async def test_thoughts_are_left_out_where_nobody_wants_them(client: httpx.AsyncClient):
    answer = await ask(client, "thinks", tools=None, include_reasoning=False)
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "She is a smith."
    assert "reasoning" not in choice["message"]
    message = (await streamed(client, "thinks", include_reasoning=False))["message"]
    assert message == {"role": "assistant", "content": "She is a smith."}


@pytest.mark.parametrize(
    ("model", "wanted"),
    [("thinkscalls", "auto"), ("thinkscalls-cross", "auto"), ("thinkscalls:aligned", "required")],
)
async def test_who_thinks_may_call(client: httpx.AsyncClient, model: str, wanted: str):
    (choice,) = (await ask(client, model, tool_choice=wanted))["choices"]
    assert choice["message"]["reasoning"] == "I look."
    assert called(choice["message"]) == [("lookup", ARGUMENTS)]
    assert choice["message"]["content"] is None


@pytest.mark.parametrize("model", ["thinkslong", "thinkslong-cross", "thinkslong:aligned"])
@pytest.mark.parametrize("tools", [None, TOOLS])
async def test_thoughts_take_no_more_than_their_budget(
    client: httpx.AsyncClient, model: str, tools: Any
):
    more = {"tools": tools, "thinking_token_budget": 40}
    answer = await ask(client, model, **more)
    (choice,) = answer["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "stop"
    assert message["reasoning"].startswith("Is it 0?")
    assert "</think>" not in message["content"]
    assert message["content"].rstrip().endswith("Is it 89?")
    details = answer["usage"]["completion_tokens_details"]
    assert 40 <= details["reasoning_tokens"] <= 40 + 20  # what opens and closes them, too
    stream = (await streamed(client, model, **more))["message"]
    assert (stream["reasoning"], stream["content"]) == (message["reasoning"], message["content"])
    thought = await ask(client, model, tools=None, max_tokens=60)
    assert thought["choices"][0]["message"]["content"] == ""  # without it it goes on


# -- refusals --------------------------------------------------------------------------------------

CALLED = {"name": "f", "arguments": "{}"}
BAD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}


def function(**more: Any) -> list[Json]:
    return [{"type": "function", "function": {"name": "f"} | more}]


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"tools": function(name="two words")}, "tools.0.function.name", "pattern"),
        ({"tools": function(name="x" * 200)}, "tools.0.function.name", "pattern"),
        ({"tools": function() * 2}, "tools", "2 times"),
        ({"tools": function(parameters={"type": "array"})}, "tools.0.function.parameters", "obj"),
        ({"tools": function(parameters=BAD, strict=True)}, "tools", "'f'"),
        ({"tools": [{"type": "web_search"}]}, "tools", "'web_search'"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice", "allowed_tools"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"functions": [LOOKUP]}, "functions", "newer"),
        ({"nudging": {"policy": "reference"}}, "tools", "no effect"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "doesn't reason"),
        ({"thinking_token_budget": 9}, "thinking_token_budget", "no thoughts"),
        ({"thinking_token_budget": -1}, "thinking_token_budget", "greater"),
        (
            {"model": "thinks", "nudging": {"policy": "reference"}, "tools": None}
            | {"thinking_token_budget": 9},
            "thinking_token_budget",
            "no effect",
        ),
        (
            {"messages": [*ASK, {"role": "tool", "content": "x"}]},
            "messages.1.tool_call_id",
            "'tool' needs it",
        ),
        (
            {"messages": [*ASK, {"role": "function", "content": "x"}]},
            "messages.1.name",
            "'function' needs it",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "function_call": CALLED}]},
            "messages.0.function_call",
            "calls no tools",
        ),
    ],
)
async def test_what_can_not_be_is_named(
    client: httpx.AsyncClient, change: Json, param: str, says: str
):
    body = {"model": "call", "messages": ASK, "tools": TOOLS} | change
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


async def test_a_schema_that_can_not_be_followed_is_any_object(client: httpx.AsyncClient):
    tools = [{"type": "function", "function": LOOKUP | {"parameters": BAD}}]
    (choice,) = (await ask(client, "call", tools=tools))["choices"]
    assert called(choice["message"]) == [("lookup", ARGUMENTS)]


async def test_tools_that_leave_no_room_are_left_out_and_that_is_said(client: httpx.AsyncClient):
    room = 2048  # of a demo model's context
    many = [
        {"type": "function", "function": {"name": f"tool_{number}", "description": "Long. " * 40}}
        for number in range(40)
    ]
    body: Json = {"model": "talks", "messages": ASK, "tools": many}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["x-nudge-tools"] == "unseen"
    assert response.json()["usage"]["prompt_tokens"] < 100
    read = (await client.post("/tokenize", json=body)).json()
    assert read["count"] < 100
    for more in (
        {"tool_choice": "required"},  # … not where the answer must be a call
        {  # … nor where one was made
            "messages": [
                *ASK,
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "a",
                            "type": "function",
                            "function": {"name": "tool_1", "arguments": "{}"},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "a", "content": "x"},
            ]
        },
    ):
        response = await client.post("/v1/chat/completions", json=body | more)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded", response.text
        assert str(room) in response.json()["error"]["message"]
    told = await client.post("/v1/chat/completions", json=body | {"tools": many[:1]})
    assert "x-nudge-tools" not in told.headers
