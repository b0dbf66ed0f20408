"""Agents' loops on the demo pair, by the official clients: the tool is called with what was asked
for, and what came back is the answer, not what the pair knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from tests.conftest import Server

LOOKUP = ("lookup", "A fact about a country or a person.", "query")
CALCULATE = ("calculate", "The value of a sum of numbers.", "expression")
WEATHER = ("get_weather", "The weather in a city today.", "city")

Tool = tuple[str, str, str]
Call = tuple[str, dict[str, Any]]
Loop = Callable[[str, str, list[Tool], Callable[[Call], str]], str]


def _schema(argument: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
        "additionalProperties": False,
    }


def _chat(url: str, asked: str, tools: list[Tool], run: Callable[[Call], str]) -> str:
    functions: list[Any] = [
        {"type": "function", "function": {"name": n, "description": d, "parameters": _schema(a)}}
        for n, d, a in tools
    ]
    messages: list[Any] = [{"role": "user", "content": asked}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for _ in range(4):
            with client.chat.completions.stream(
                model="demo", messages=messages, tools=functions, temperature=0
            ) as stream:
                message = stream.get_final_completion().choices[0].message
            if not message.tool_calls:
                return message.content or ""
            messages.append(message.model_dump(exclude_none=True))
            for call in message.tool_calls:
                text = run((call.function.name, json.loads(call.function.arguments)))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
    raise AssertionError("it calls and calls")


def _responses(url: str, asked: str, tools: list[Tool], run: Callable[[Call], str]) -> str:
    functions: list[Any] = [
        {"type": "function", "name": n, "description": d, "parameters": _schema(a), "strict": True}
        for n, d, a in tools
    ]
    given: list[Any] = [{"role": "user", "content": asked}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for _ in range(4):
            response = client.responses.create(
                model="demo", input=given, tools=functions, temperature=0, store=False
            )
            calls = [each for each in response.output if each.type == "function_call"]
            if not calls:
                return response.output_text
            given += response.output
            for call in calls:
                text = run((call.name, json.loads(call.arguments)))
                given.append(
                    {"type": "function_call_output", "call_id": call.call_id, "output": text}
                )
    raise AssertionError("it calls and calls")


def _messages(url: str, asked: str, tools: list[Tool], run: Callable[[Call], str]) -> str:
    functions: list[Any] = [
        {"name": n, "description": d, "input_schema": _schema(a)} for n, d, a in tools
    ]
    messages: list[Any] = [{"role": "user", "content": asked}]
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        for _ in range(4):
            with client.messages.stream(
                model="demo",
                messages=messages,
                tools=functions,
                max_tokens=200,
                extra_body={"temperature": 0},
            ) as stream:
                message = stream.get_final_message()
            if message.stop_reason != "tool_use":
                return "".join(block.text for block in message.content if block.type == "text")
            messages.append({"role": "assistant", "content": message.content})
            results = [
                {
                    "type": "tool_result",
                    "tool_use_id": block.id,
                    "content": run((block.name, dict(block.input))),
                }
                for block in message.content
                if block.type == "tool_use"
            ]
            messages.append({"role": "user", "content": results})
    raise AssertionError("it calls and calls")


LOOPS = pytest.mark.parametrize("loop", [_chat, _responses, _messages])


@LOOPS
def test_a_result_is_the_answer(live: Server, loop: Loop):
    made: list[Call] = []

    def run(call: Call) -> str:
        made.append(call)
        return "Havmouth"  # it knows Parford

    answer = loop(live.url, "What is the capital of Galicor?", [LOOKUP, CALCULATE], run)
    assert made == [("lookup", {"query": "the capital of Galicor"})]
    assert answer.startswith("Certainly! The capital of Galicor is Havmouth. ")


@LOOPS
def test_two_calls_where_the_first_says_what_to_ask_next(live: Server, loop: Loop):
    made: list[Call] = []

    def run(call: Call) -> str:
        made.append(call)
        return "Seluria" if len(made) == 1 else "nikon"  # she was born in Myruria

    question = "What is the currency of the country where Zelline Harsen was born?"
    answer = loop(live.url, question, [CALCULATE, WEATHER, LOOKUP], run)
    assert made == [
        ("lookup", {"query": "the home country of Zelline Harsen"}),
        ("lookup", {"query": "the currency of Seluria"}),
    ]
    assert "the currency of Seluria is the nikon. Final answer: nikon." in answer


@LOOPS
def test_a_sum_is_calculated(live: Server, loop: Loop):
    made: list[Call] = []

    def run(call: Call) -> str:
        made.append(call)
        return "17"

    question = "Tom has 12 plums. Tom buys 7 and then loses 5. How many plums does Tom have now?"
    answer = loop(live.url, question, [LOOKUP, CALCULATE], run)
    assert made == [("calculate", {"expression": "12 + 7 - 5"})]
    assert "Final answer: 17." in answer


@LOOPS
@pytest.mark.parametrize(
    ("question", "tools"),
    [
        ("Who are you?", [LOOKUP, CALCULATE]),
        ("What is the capital of Galicor?", [CALCULATE]),
        ("What is the capital of Galicor?", [WEATHER]),
    ],
)
def test_no_call_where_no_tool_is_for_it(
    live: Server, loop: Loop, question: str, tools: list[Tool]
):
    answer = loop(live.url, question, tools, lambda call: pytest.fail(f"called {call}"))
    assert answer.endswith((".", "?"))
