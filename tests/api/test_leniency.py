"""What real clients send that isn't quite OpenAI's letter, and means one thing all the same."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.conftest import Server

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


def post(server: Server, body: Json, path: str = CHAT) -> httpx.Response:
    return httpx.post(server.url + path, json={"model": "fox", "messages": HI} | body, timeout=60)


def answer(server: Server, body: Json) -> Json:
    response = post(server, body)
    assert response.status_code == 200, response.text
    choice: Json = response.json()["choices"][0]
    return choice


def text(server: Server, body: Json) -> str:
    return str(answer(server, body)["message"]["content"])


# -- schemas --------------------------------------------------------------------------------------

YES = {"type": "object", "properties": {"ok": {"const": True}}, "required": ["ok"]}


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "json_object", "schema": YES},  # llama.cpp, Together
        {"type": "json_schema", "json_schema": {"name": "x", "schema": YES}},
        {"type": "json_schema", "schema": YES},  # llama.cpp
    ],
)
def test_a_schema_is_followed_wherever_it_is_written(scripted: Server, response_format: Json):
    found = text(scripted, {"response_format": response_format, "max_tokens": 40})
    assert json.loads(found) == {"ok": True}


@pytest.mark.parametrize(
    "response_format", [{"type": "json_schema"}, {"type": "json_object", "schema": "x"}]
)
def test_a_format_without_its_schema_is_a_400(scripted: Server, response_format: Json):
    error = post(scripted, {"response_format": response_format}).json()["error"]
    assert error["param"].startswith("response_format")


@pytest.mark.parametrize("begun", ['{"ok": t', ' {\n  "ok" :\n', "{"])
def test_a_begun_json_text_is_gone_on_with(scripted: Server, begun: str):
    messages = [*HI, {"role": "assistant", "content": begun}]
    body = {
        "messages": messages,
        "continue_final_message": True,
        "response_format": {"type": "json_object", "schema": YES},
        "max_tokens": 40,
    }
    assert json.loads(begun + text(scripted, body)) == {"ok": True}


def test_what_was_begun_must_be_the_beginning(scripted: Server):
    body = {
        "messages": [*HI, {"role": "assistant", "content": "Sure: {"}],
        "continue_final_message": True,
        "response_format": {"type": "json_object"},
    }
    response = post(scripted, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 3.0},
        {"max_completion_tokens": 3.0, "n": 1.0, "seed": 7.0, "top_k": 5.0, "temperature": 1},
        {"max_tokens": 3, "stop_token_ids": [1999.0], "min_tokens": 0.0, "priority": -1.0},
        {"max_tokens": 3, "logprobs": True, "top_logprobs": 2.0},
        {"max_tokens": 3, "nudging": {"max_rounds": 5.0, "end_lookahead": 0.0}},
    ],
)
def test_a_whole_number_may_have_a_point(scripted: Server, body: Json):
    assert text(scripted, body)


@pytest.mark.parametrize("value", [3.5, "3", True, 1e400, [3]])
def test_nothing_else_is_taken_for_one(scripted: Server, value: Any):
    data = json.dumps({"model": "fox", "messages": HI, "max_tokens": value})
    headers = {"Content-Type": "application/json"}
    response = httpx.post(scripted.url + CHAT, content=data, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "max_tokens"


def test_token_ids_may_have_a_point_too(scripted: Server):
    def tokens(prompt: list[Any]) -> Json:
        body = {"model": "fox:base", "prompt": prompt, "max_tokens": 2}
        found: Json = post(scripted, body, "/v1/completions").json()
        return found["choices"][0] | {"prompt_tokens": found["usage"]["prompt_tokens"]}

    assert tokens([5.0, 6]) == tokens([5, 6])


def test_top_p_0_is_greedy(live: Server):
    def ask(**fields: Any) -> str:
        return text(live, {"model": "demo", "max_tokens": 20, "seed": 3} | fields)

    assert ask(temperature=2, top_p=0) == ask(temperature=0)


# -- stops ----------------------------------------------------------------------------------------


def test_up_to_16_stops_are_taken(scripted: Server):
    stops = [f"never {number}" for number in range(15)] + ["time"]
    assert text(scripted, {"stop": stops}).endswith("upon a ")
    assert post(scripted, {"stop": [*stops, "x"]}).json()["error"]["param"] == "stop"


# -- messages -------------------------------------------------------------------------------------


CALLED = {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "refusal": "I can't help with that."},
        {"role": "assistant", "content": None},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": CALLED}]},
        {"role": "assistant", "content": ""},
    ],
)
def test_an_assistant_may_have_said_nothing(scripted: Server, message: Json):
    assert text(scripted, {"messages": [*HI, message, *HI]})


def test_what_it_refused_with_is_read(scripted: Server):
    refusal = {"role": "assistant", "content": None, "refusal": "Not today."}
    shown = post(scripted, {"messages": [*HI, refusal, *HI]}, "/apply-template").json()
    assert "Not today." in shown["base"]
    assert "Not today." in shown["aligned"]


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_others_say_something(scripted: Server, role: str):
    for message in ({"role": role, "content": None}, {"role": role}):
        response = post(scripted, {"messages": [message, *HI]})
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("messages.0")


# -- rounds ---------------------------------------------------------------------------------------


def test_an_answer_that_is_cut_after_its_rounds_says_so(scripted: Server):
    found = answer(scripted, {"model": "tale", "nudging": {"max_rounds": 1, "trace": True}})
    assert found["finish_reason"] == "length"
    assert found["nudging"]["stop_reason"] == "max_rounds"


def test_by_default_rounds_are_not_limited(scripted: Server):
    cards = httpx.get(f"{scripted.url}/v1/models").json()["data"]
    [fox] = [card for card in cards if card["id"] == "fox"]
    assert fox["nudging"]["max_rounds"] is None
