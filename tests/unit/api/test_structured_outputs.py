"""vLLM's `structured_outputs`, with engines that play another text: what comes matches what was
asked for, whoever wrote it, and what can't be followed is refused by its name."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.unit.api.served import application
from tests.unit.api.test_tool_chats import ASK, TOOLS, engines

Json = dict[str, Any]
TEXT = "Well, who knows it? Not I."


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    given: Json = {"engines": engines(TEXT), "models": {}}
    for engine in given["engines"].values():
        engine |= {"backend": "scripted", "args": {"script": engine.pop("script")}}
    for name, aligned in (("pair", "aligned"), ("cross", "small")):
        given["models"][name] = {"base": "base", "aligned": aligned, "sampling": {"temperature": 0}}
    async with application(given) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as asking:
            yield asking


async def ask(client: httpx.AsyncClient, asked: Any, model: str = "pair", **more: Any) -> Any:
    body = {"model": model, "messages": ASK, "structured_outputs": asked, "max_tokens": 30} | more
    return await client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("model", ["pair", "cross", "pair:base", "pair:aligned"])
@pytest.mark.parametrize(
    ("asked", "form"),
    [
        ({"regex": "[0-9]{3}-[a-z]/x"}, r"[0-9]{3}-[a-z]/x"),
        ({"choice": ["yes", 'a "no"\n']}, r'yes|a "no"\n'),
        ({"grammar": 'start: "a" b\nb: /[0-9]{2}/ "z"'}, r"a[0-9]{2}z"),
        ({"json": {"enum": [17]}}, r"17"),
        ({"json": '{"enum": [17]}'}, r"17"),
    ],
)
async def test_an_answer_matches_what_was_asked_for(
    client: httpx.AsyncClient, model: str, asked: Json, form: str
):
    response = await ask(client, asked, model)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert re.fullmatch(form, choice["message"]["content"])
    assert choice["finish_reason"] == "stop"


async def test_an_answer_that_was_begun_goes_on_with_it(client: httpx.AsyncClient):
    begun = [*ASK, {"role": "assistant", "content": "12"}]
    asked = {"regex": "12[a-c]{2}"}
    response = await ask(client, asked, messages=begun, continue_final_message=True)
    assert re.fullmatch("[a-c]{2}", response.json()["choices"][0]["message"]["content"])
    begun[-1]["content"] = "13"
    response = await ask(client, asked, messages=begun, continue_final_message=True)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "structured_outputs"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"regex": "(a"}, ""),
        ({"regex": "(((a{1000}){1000}){1000})"}, ""),
        ({"grammar": "start: ("}, ""),
        ({"grammar": 'start: <|nobody|> "a"'}, ""),
        ({}, ""),
        ({"regex": "a", "choice": ["b"]}, ""),
        ({"json": "[1"}, ".json"),
        ({"json": "[" * 100_000}, ".json"),
        ({"choice": []}, ".choice"),
        ({"choice": [""]}, ".choice.0"),
    ],
)
async def test_what_cannot_be_followed_is_refused(
    client: httpx.AsyncClient, asked: Json, param: str
):
    response = await ask(client, asked)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == f"structured_outputs{param}"
    assert len(response.json()["error"]["message"]) < 400


async def test_a_response_follows_it_too(client: httpx.AsyncClient):
    body: Json = {"model": "pair", "input": "Who?", "max_output_tokens": 30}
    for asked, form in (({"regex": "[a-f]{5}"}, "[a-f]{5}"), ({"json": {"enum": [17]}}, "17")):
        response = await client.post("/v1/responses", json=body | {"structured_outputs": asked})
        (item,) = response.json()["output"]
        assert re.fullmatch(form, item["content"][0]["text"])
        twice = {"structured_outputs": asked, "text": {"format": {"type": "json_object"}}}
        response = await client.post("/v1/responses", json=body | twice)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "structured_outputs"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"tools": TOOLS}, "structured_outputs"),
    ],
)
async def test_nor_does_it_go_with_everything(client: httpx.AsyncClient, more: Json, param: str):
    response = await ask(client, {"regex": "a"}, **more)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_stream_is_the_whole_answer(client: httpx.AsyncClient):
    asked = {"regex": "[a-f]{5}"}
    whole = (await ask(client, asked)).json()["choices"][0]["message"]["content"]
    lines = (await ask(client, asked, stream=True)).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == whole
