"""Tools and thoughts through Anthropic's official client, with engines that play a text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message

from tests.conftest import ROOT
from tests.unit.api.served import application

Json = dict[str, Any]

ARGUMENTS = {"entity": "Ava", "attribute": "job"}
CALL = f'<tool_call>\n{{"name": "lookup", "arguments": {json.dumps(ARGUMENTS)}}}\n</tool_call>'
SAID = "I'll look it up.\n"
TEXTS = {
    "call": CALL,
    "said": SAID + CALL,
    "two": f"{CALL}\n{CALL}",
    "talks": "No tool is needed.",
    "thinks": "<think>\nShe has a job.\n</think>\n\nShe is a smith.",
    "thinkslong": "<think>\n" + "".join(f"Is it {n}? " for n in range(90)),
    "thinkscalls": "<think>\nI look.\n</think>\n\n" + CALL,
    "endless": '<tool_call>\n{"name": "lookup", "arguments": {"entity": "' + "a b " * 200,
}

TEXT = {"type": "string"}
LOOKUP: Any = {
    "name": "lookup",
    "description": "A fact.",
    "input_schema": {"type": "object", "properties": {"entity": TEXT, "attribute": TEXT}},
}
NOW: Any = {"name": "now", "input_schema": {"type": "object", "properties": {}}}
TOOLS = [LOOKUP, NOW]
ASK: Any = [{"role": "user", "content": "What does Ava do?"}]


def engine(role: str, script: list[Any]) -> Json:
    model = str(ROOT / "models" / "demo" / role)
    return {"backend": "scripted", "model": model, "args": {"script": script}}


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Of pairs that write a text each, the base model unsure at each third word."""
    given: Json = {"engines": {}, "models": {}}
    for name, text in TEXTS.items():
        words = [" " * bool(i) + word for i, word in enumerate(text.split(" "))]
        script: list[Any] = [[word, 0.2 if i % 3 == 2 else 0.9] for i, word in enumerate(words)]
        given["engines"][f"{name}-base"] = engine("base", [[" ", 0.9], *script])
        given["engines"][f"{name}-aligned"] = engine("aligned", [[text, 0.9]])
        model: Json = {"base": f"{name}-base", "aligned": f"{name}-aligned"}
        model["sampling"] = {"temperature": 0}
        if name.startswith("thinks"):
            model["reasoning"] = "think"
        given["models"][name] = model
    async with (
        application(given) as app,
        anthropic.AsyncAnthropic(
            api_key="none",
            base_url="http://test",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(app)),
        ) as asking,
    ):
        yield asking


async def ask(client: anthropic.AsyncAnthropic, model: str, **more: Any) -> Message:
    """A whole answer, of which it is made sure that it is the streamed one."""
    body = {"model": model, "max_tokens": 300, "messages": ASK, "tools": TOOLS} | more
    whole = await client.messages.create(**body)
    async with client.messages.stream(**body) as stream:
        streamed = await stream.get_final_message()
    assert [shown(block) for block in streamed.content] == [shown(b) for b in whole.content]
    assert streamed.stop_reason == whole.stop_reason
    return whole


def shown(block: Any) -> Any:
    match block.type:
        case "text":
            return block.text
        case "thinking":
            return ("thinks", block.thinking)
        case _:
            return (block.name, block.input)


def content(message: Message) -> list[Any]:
    return [shown(block) for block in message.content]


@pytest.mark.parametrize("model", ["call", "call:base", "call:aligned", "call@0", "call@2"])
async def test_a_call_is_a_call_whoever_wrote_it(client: anthropic.AsyncAnthropic, model: str):
    message = await ask(client, model)
    assert content(message) == [("lookup", ARGUMENTS)]
    assert message.stop_reason == "tool_use"


async def test_what_is_said_in_front_of_it_is_text(client: anthropic.AsyncAnthropic):
    assert content(await ask(client, "said")) == [SAID, ("lookup", ARGUMENTS)]


async def test_several_calls_or_one_alone(client: anthropic.AsyncAnthropic):
    message = await ask(client, "two")
    assert content(message) == [("lookup", ARGUMENTS)] * 2
    ids = {block.id for block in message.content if block.type == "tool_use"}
    assert len(ids) == 2
    alone = {"type": "auto", "disable_parallel_tool_use": True}
    assert content(await ask(client, "two", tool_choice=alone)) == [("lookup", ARGUMENTS)]


async def test_a_call_can_be_demanded_and_named(client: anthropic.AsyncAnthropic):
    named = await ask(client, "talks", tool_choice={"type": "tool", "name": "now"})
    assert content(named) == [("now", {})]
    some = await ask(client, "talks", tool_choice={"type": "any"}, max_tokens=60)
    assert [block.type for block in some.content][:1] == ["tool_use"]


async def test_none_may_be_called(client: anthropic.AsyncAnthropic):
    message = await ask(client, "talks", tool_choice={"type": "none"})
    assert content(message) == ["No tool is needed."]
    assert message.stop_reason == "end_turn"


async def test_thoughts_come_first(client: anthropic.AsyncAnthropic):
    message = await ask(client, "thinks", tools=[])
    (kind, thought), said = content(message)
    assert kind == "thinks"
    assert thought.strip() == "She has a job."
    assert said.strip() == "She is a smith."
    details: Any = message.usage.output_tokens_details
    assert 0 < details.thinking_tokens < message.usage.output_tokens
    (kind, thought), call = content(await ask(client, "thinkscalls"))
    assert (thought.strip(), call) == ("I look.", ("lookup", ARGUMENTS))


async def test_a_call_that_is_cut_is_as_far_as_it_came(client: anthropic.AsyncAnthropic):
    message = await ask(client, "endless", max_tokens=60)
    assert message.stop_reason == "max_tokens"
    ((name, arguments),) = content(message)
    assert name == "lookup"
    assert arguments.keys() <= {"entity"}


@pytest.mark.parametrize("model", ["call", "call:base", "call:aligned", "thinks"])
async def test_a_result_is_read_and_counted(client: anthropic.AsyncAnthropic, model: str):
    """The whole loop, and what it costs."""
    first = await ask(client, "call")
    (call,) = first.content
    assert call.type == "tool_use"
    found: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "a smith"}
    answer: Any = [block.to_dict() for block in first.content]
    talk: Any = [
        *ASK,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [found]},
    ]
    counts = []
    for messages, tools in ((ASK, []), (ASK, TOOLS), (talk, TOOLS)):
        counted = await client.messages.count_tokens(model=model, messages=messages, tools=tools)
        read = await client.messages.create(
            model=model, messages=messages, tools=tools, max_tokens=1
        )
        assert counted.input_tokens == read.usage.input_tokens
        counts.append(counted.input_tokens)
    assert counts == sorted(set(counts))


@pytest.mark.parametrize(("budget", "passed"), [(40, None), (None, "thinking")])
async def test_a_budget_of_thoughts_is_held_to(
    client: anthropic.AsyncAnthropic, budget: int | None, passed: str | None
):
    thinking: Any = {"type": "adaptive"}
    if budget is not None:
        thinking = {"type": "enabled", "budget_tokens": budget}
    raw = await client.messages.with_raw_response.create(
        model="thinkslong", max_tokens=120, messages=ASK, thinking=thinking
    )
    assert raw.headers.get("x-nudge-passed-over") == passed
    answer = await raw.parse()
    kinds = [block.type for block in answer.content]
    assert kinds == (["thinking"] if budget is None else ["thinking", "text"])
    details = answer.usage.output_tokens_details
    assert details is not None
    assert (budget is None) == (details.thinking_tokens > 60)
