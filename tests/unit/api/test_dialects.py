"""A dialect is all that another API needs: its own requests, answers, streams and failures, also
where a layer fails that knows no dialect; and its answers are parsed before it sees them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, SecretStr

from server import config
from server.api import dialects, routes
from server.api.app import create_app
from server.api.ask import Ask, Chat, Texts
from server.api.dialect import Written
from server.api.errors import ApiError
from server.api.openai.chat import ChatRequest
from server.api.openai.completions import CompletionRequest
from server.api.openapi import responses
from server.api.respond import AT_ONCE
from server.api.store import Shelf
from server.core import (
    AnswerRequest,
    Finished,
    Message,
    Piece,
    SamplingParams,
    ScoredToken,
    Usage,
)
from server.decoding.parsing import Content, Part
from server.decoding.stream import End, Output
from server.serving.registry import Registry
from tests.conftest import ROOT

Json = dict[str, Any]


class Call(BaseModel):
    who: str
    says: str
    again: bool = False


class Heard(BaseModel):
    heard: str


class Lines:
    """A reply whose frames are lines."""

    id = "line-1"
    keep_alive = b"~\n"

    def begins(self, index: int, echo: str, usage: Usage | None) -> Iterable[bytes]:
        yield b"begins\n"

    def shows(self, index: int, event: Part | Finished, usage: Usage | None) -> Iterable[bytes]:
        ended = isinstance(event, Finished)
        said = event.finish_reason if ended else event.piece.text
        yield f"{'ends' if ended else 'says'} {said}\n".encode()

    def over(self, usage: Usage) -> Iterable[bytes]:
        yield f"over {usage.completion_tokens}\n".encode()

    def failed(self, failure: ApiError) -> Iterable[bytes]:
        yield f"failed {failure.code}\n".encode()

    def whole(self, answers: Sequence[Written], usage: Usage) -> Json:
        (answer,) = answers
        return {"heard": "".join(part.piece.text for part in answer.parts)}


class Calls:
    """A dialect that has nothing of OpenAI's."""

    path = "/calls"
    name = "calls"
    description = "Calls."
    body: type[BaseModel] = Call
    responses = responses(Heard)
    statuses: Mapping[int, int] = {}

    def parse(self, body: bytes, shelf: Shelf[Any]) -> tuple[Ask, Lines]:
        call = Call.model_validate_json(body)
        chat = Chat([Message("user", call.says)])
        return Ask(call.who, chat, AnswerRequest(), stream=call.again), Lines()

    def error(self, failure: ApiError) -> Json:
        about = "says" if failure.param == "messages" else failure.param
        return {"sorry": failure.code or str(failure), "about": about}


@pytest.fixture(scope="module")
def one_more() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialects, "DIALECTS", (*dialects.DIALECTS, Calls()))
        patch.setattr(routes, "DIALECTS", dialects.DIALECTS)
        yield


@pytest.fixture(scope="module")
async def client(one_more: None) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that speaks it too, and asks for a key."""
    settings = config.load(ROOT / "tests" / "scripted.yaml")
    kept = {name: settings.models[name] for name in ("fox", "broken")}
    kept["stopped"] = kept["fox"].model_copy(update={"stop": ("fox",)})
    engines = {name: settings.engines[name] for name in ("base", "aligned", "broken")}
    for engine in engines.values():
        engine.args["step_s"] = 0.0
    server = settings.server.model_copy(
        update={"api_keys": [SecretStr("sk-x")], "max_body_bytes": 10_000}
    )
    registry = Registry(
        settings.model_copy(update={"models": kept, "engines": engines, "server": server})
    )
    await registry.start()
    app = create_app(registry, start=asyncio.Event().wait)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://test",
        headers={"Authorization": "Bearer sk-x"},
    ) as asking:
        yield asking
    await registry.aclose()


async def test_it_is_asked_and_answered_as_it_says(client: httpx.AsyncClient):
    response = await client.post("/calls", json={"who": "fox", "says": "Hi"})
    assert response.json() == {"heard": "Onceupon a time there was a fox.  Shean.n."}
    assert response.headers["x-request-id"]


async def test_so_is_a_stream(client: httpx.AsyncClient):
    response = await client.post("/calls", json={"who": "fox", "says": "Hi", "again": True})
    first, *said, end, over = response.text.splitlines()
    assert first == "begins"
    assert said[:2] == ["says Once", "says up"]
    assert end == "ends stop"
    assert over.split()[0] == "over"
    assert int(over.split()[1]) >= len(said)


async def test_a_stream_that_fails_ends_as_it_says(client: httpx.AsyncClient):
    response = await client.post("/calls", json={"who": "broken", "says": "Hi", "again": True})
    assert response.status_code == 200
    assert response.text.splitlines()[-1] == "failed engine_unavailable"


async def test_its_failures_have_its_shape_whoever_raises_them(client: httpx.AsyncClient):
    async def fails(status: int, method: str = "POST", path: str = "/calls", **sent: Any) -> Json:
        response = await client.request(method, path, **sent)
        assert response.status_code == status, response.text
        return response.json()

    call = {"who": "fox", "says": "Hi"}
    assert await fails(400, json={"who": "fox"}) == {
        "sorry": "says: Field required",
        "about": "says",
    }
    assert await fails(404, json=call | {"who": "cat"}) == {
        "sorry": "model_not_found",
        "about": "model",
    }
    long = {"who": "fox", "says": "word " * 1900}
    assert await fails(400, json=long) == {"sorry": "context_length_exceeded", "about": "says"}
    assert (await fails(413, content=b"x" * 20_000))["sorry"] == "request_too_large"
    assert (await fails(401, headers={"Authorization": ""}))["sorry"] == "invalid_api_key"
    assert (await fails(405, "GET"))["sorry"] == "method_not_allowed"
    assert (await fails(404, path="/calls/count"))["sorry"] == "not_found"
    assert (await fails(404, path="/calls//count/"))["sorry"] == "not_found"


@pytest.mark.parametrize("path", ["/callsome", "/v1/chat/completions", "/v1/models/no", "/no"])
async def test_others_keep_theirs(client: httpx.AsyncClient, path: str):
    response = await client.get(path)
    assert response.json().keys() == {"error"}


async def test_its_route_is_described(client: httpx.AsyncClient):
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/calls"]["post"]
    assert operation["operationId"] == "calls_calls_post"
    assert operation["description"] == "Calls."
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["who", "says"]
    assert "Heard" in document["components"]["schemas"]


# -- what is parsed -------------------------------------------------------------------------------


class Loud:
    """A parser that gives whole words away, in capitals, and the rest at the end."""

    def __init__(self) -> None:
        self._rest = ""

    def push(self, piece: Piece) -> Iterable[Part]:
        self._rest += piece.text.upper()
        while " " in self._rest:
            word, self._rest = self._rest.split(" ", 1)
            yield Content(Piece(f"{word}.", "base", 1.0, 0))

    def end(self, finished: Finished) -> Iterable[Part | Finished]:
        yield Content(Piece(self._rest, "base", 1.0, 0))
        yield finished


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_shows_an_answer_gets_what_its_parser_gives(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, stream: bool
):
    monkeypatch.setattr(routes, "_parser", lambda *_: Loud)
    body = {"model": "fox", "n": 2, "stream": stream, "temperature": 0}
    body["messages"] = [{"role": "user", "content": "Hi"}]
    response = await client.post("/v1/chat/completions", json=body)
    if stream:
        data = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert data.pop() == "[DONE]"
        choices = [choice for each in data for choice in json.loads(each)["choices"]]
        said = [
            "".join(c["delta"].get("content", "") for c in choices if c["index"] == index)
            for index in range(2)
        ]
    else:
        said = [each["message"]["content"] for each in response.json()["choices"]]
    assert said == ["ONCEUPON.A.TIME.THERE.WAS.A.FOX...SHEAN.N."] * 2


class Silent:
    """A writer that writes what a chat doesn't show, more often than is sent at once, and waits
    each time until it was taken."""

    async def write(self, out: Output) -> End:
        out.emit(Piece("Hi", "base", 0.5, 1))
        for _ in range(AT_ONCE + 2):
            await asyncio.sleep(0)
            out.emit(Piece("", "base", 0.5, 1, scored=(ScoredToken(b"", -0.1, (), "end"),)))
            await asyncio.sleep(0.001)
        return End("end_of_text")

    def usage(self) -> Usage:
        return Usage(base_prompt_tokens=1, base_tokens=1)


async def test_a_stream_goes_on_where_what_was_written_says_nothing(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Registry, "writer", lambda *_: Silent())
    body: Json = {"model": "fox", "stream": True, "logprobs": True}
    body["messages"] = [{"role": "user", "content": "Hi"}]
    response = await client.post("/v1/chat/completions", json=body)
    *_, last, done = [line for line in response.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"


# -- what OpenAI's two ask for --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "stop"),
    [({}, ("\nQ:",)), ({"stop": None}, ("\nQ:",)), ({"stop": []}, ()), ({"stop": "x"}, ("x",))],
)
def test_the_models_stop_strings_are_for_who_names_none(asked: Json, stop: tuple[str, ...]):
    request = CompletionRequest.model_validate({"model": "fox", "prompt": "Hi"} | asked)
    answer = request.ask().request(SamplingParams(), None, ("\nQ:",))
    assert answer.stop == stop


async def test_they_reach_an_answer(client: httpx.AsyncClient):
    asked: Json = {"model": "stopped", "messages": [{"role": "user", "content": "Hi"}]}

    async def said(**more: Any) -> str:
        response = await client.post("/v1/chat/completions", json=asked | more)
        return str(response.json()["choices"][0]["message"]["content"])

    assert (await said()).endswith("there was a ")
    assert "fox" in await said(stop=[])


def test_a_chat_and_a_text_ask_for_the_same_in_the_same_words():
    shared: Json = {
        "model": "fox",
        "n": 2,
        "stream": True,
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": -1,
        "logit_bias": {"5": 1},
        "priority": 3,
        "stop": "x",
        "nudging": {"gamma": 0.3, "trace": True},
        "response_format": {"type": "json_object"},
        "stream_options": {"continuous_usage_stats": True},
    }
    chat = ChatRequest.model_validate(
        shared | {"messages": [{"role": "user", "content": "Hi"}]}
    ).ask()
    text = CompletionRequest.model_validate(shared | {"prompt": "Hi"}).ask()
    assert chat.prompt == Chat([Message("user", "Hi")])
    assert text.prompt == Texts(["Hi"])
    for ask in (chat, text):
        assert ask.model == "fox"
        assert (ask.n, ask.stream, ask.priority, ask.running_usage) == (2, True, 3, True)
        assert ask.answer == AnswerRequest(max_tokens=7, stop=("x",), traced=True)
        assert ask.sampling == {"temperature": 0.5, "top_k": 0, "logit_bias": ((5, 1),)}
        assert ask.nudging == {"gamma": 0.3}
        assert ask.schema == {"type": "object"}
