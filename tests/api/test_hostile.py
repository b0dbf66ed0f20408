"""Requests that are made to hurt: the server answers each with a 400 or an answer, its memory stays
bounded, and everybody else is served meanwhile."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import REPEATABLE, Server
from tests.thorough import first

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


@contextmanager
def others_served(server: Server, within_s: float = 1.0) -> Iterator[None]:
    """Somebody else asks for /health all the while, and is never kept waiting.

    The bound is generous, as the machine may be busy; what this is about took seconds.
    """
    host = server.url.removeprefix("http://")
    waits, done = [0.0], threading.Event()

    def poll() -> None:
        with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
            while not done.is_set():
                began = time.perf_counter()
                connection.request("GET", "/health")
                assert connection.getresponse().read()
                waits.append(time.perf_counter() - began)
                time.sleep(0.05)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert max(waits) < within_s


def memory(server: Server) -> int:
    """MiB of the server and all that it started."""
    total = 0
    for pid in [server.process.pid, *server.children()]:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except FileNotFoundError:
            continue
        found = re.search(r"VmRSS:\s+(\d+)", status)
        total += int(found[1]) // 1024 if found else 0
    return total


def post(server: Server, body: Json | bytes, path: str = CHAT) -> httpx.Response:
    data = body if isinstance(body, bytes) else as_json(body)
    return httpx.post(
        server.url + path, content=data, headers={"Content-Type": "application/json"}, timeout=120
    )


def as_json(body: Json) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def schema_body(schema: Json, model: str = "fox", **fields: Any) -> Json:
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"model": model, "messages": HI, "max_tokens": 8, "response_format": named} | fields


DEEP: Json = {"type": "null"}
for _ in range(90):
    DEEP = {"type": "array", "items": DEEP}

HOSTILE: list[Json] = [
    {"const": -9223372036854775807},
    {"enum": [1, [-(2**63)]]},
    {"type": "array", "minItems": 10**9},
    {"type": "array", "maxItems": 10**6, "items": {"const": 1}},
    {"type": "array", "prefixItems": [{"const": 1}] * 20_000, "minItems": 20_000},
    {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(5000)}},
    {"type": "integer", "multipleOf": 1_000_003},
    {"type": "string", "pattern": "(a|aa){1,5000}b"},
    {"type": "string", "minLength": 10**9},
    {"const": "x" * 500_000},
    {"$ref": "#"},
    {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    DEEP,
    {"const": 9007199254740993},
    {"type": "object", "minProperties": 2},
    {"x": "\x00", "type": "\x00"},
    {"$id": "http://127.0.0.1:1/", "$ref": "x#/y"},
    {"$ref": "file:///etc/passwd"},
]


@pytest.mark.parametrize("schema", first(5, HOSTILE), ids=lambda schema: json.dumps(schema)[:40])
def test_a_hostile_schema_hurts_nobody(scripted: Server, schema: Json):
    before = memory(scripted)
    with others_served(scripted):
        response = post(scripted, schema_body(schema))
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["param"] == "response_format"
    assert scripted.process.poll() is None
    assert memory(scripted) < before + 300


EXTREMES = st.sampled_from(
    [
        0,
        -1,
        1,
        3,
        2**31,
        -(2**31),
        2**53,
        -(2**53),
        2**63 - 1,
        -(2**63),
        10**30,
        1e-300,
        -1e308,
        0.1,
    ]
)
WORDS = st.sampled_from(["", "a", "^s$", "(a+)+$", "[", "\\", "x{1000}", "#", "#/a", "date", "😀"])
TYPES = st.sampled_from(["object", "array", "string", "integer", "number", "null", "any", 5])
NUMERIC = [
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems"),
    *("maxItems", "minLength", "maxLength", "minProperties", "maxProperties"),
]
NESTED = ["items", "additionalProperties", "not", "if", "contains", "propertyNames"]


def _keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    odd = st.none() | st.booleans() | EXTREMES | WORDS
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, max_size=3),
            "const": odd,
            "enum": st.lists(odd, max_size=4),
            "pattern": WORDS,
            "format": WORDS,
            "$ref": WORDS,
            "required": st.lists(WORDS, max_size=2),
            "properties": st.dictionaries(WORDS, inner, max_size=3),
            "patternProperties": st.dictionaries(WORDS, inner, max_size=2),
            **{name: EXTREMES for name in NUMERIC},
            **{name: inner for name in NESTED},
            **{name: st.lists(inner, max_size=3) for name in ("anyOf", "oneOf", "allOf")},
        },
    )


@settings(REPEATABLE, max_examples=120)
@given(schema=st.recursive(st.builds(dict), _keywords, max_leaves=8))
def test_no_schema_hurts_the_server(scripted: Server, schema: Json):
    response = post(scripted, schema_body(schema, max_tokens=2))
    assert response.status_code in (200, 400), (schema, response.text)
    assert httpx.get(f"{scripted.url}/health").status_code == 200


@pytest.mark.parametrize("schema", [HOSTILE[0], HOSTILE[2], {"enum": ["😀é漢字"]}], ids=json.dumps)
def test_nor_an_engine(live: Server, schema: Json):
    response = post(live, schema_body(schema, "demo", max_tokens=40))
    assert response.status_code in (200, 400), response.text
    assert httpx.get(f"{live.url}/ready").json() == {"status": "ready"}


MANY = 130_000
EMPTY = {"role": "user", "content": ""}
PART = {"type": "text", "text": ""}
BODIES: dict[str, tuple[str, Json]] = {
    "messages": (CHAT, {"messages": [EMPTY] * MANY}),
    "as many as may": (CHAT, {"messages": [EMPTY] * 16_000}),
    "parts": (CHAT, {"messages": [{"role": "user", "content": [PART] * MANY}]}),
    "no messages": (CHAT, {"messages": [1] * 1_900_000}),
    "no parts": (CHAT, {"messages": [{"role": "user", "content": [1] * 1_900_000}]}),
    "lists": (CHAT, {"messages": HI, "x": [[]] * 1_300_000}),
    "biases": (CHAT, {"messages": HI, "logit_bias": {str(n): 1 for n in range(300_000)}}),
    "odd biases": (CHAT, {"messages": HI, "logit_bias": {f"a{n}": 1 for n in range(300_000)}}),
    "kwargs": (CHAT, {"messages": HI, "chat_template_kwargs": {str(n): 1 for n in range(300_000)}}),
    "tools": (CHAT, {"messages": HI, "tools": [{}] * 90_000}),
    "stops": (CHAT, {"messages": HI, "stop": ["x"] * 900_000}),
    "prompts": ("/v1/completions", {"prompt": ["x"] * 900_000}),
    "ids": ("/v1/completions", {"model": "fox:base", "prompt": [5] * 1_900_000}),
    "no ids": ("/v1/completions", {"model": "fox:base", "prompt": [-5] * 1_300_000}),
    "lists of ids": ("/v1/completions", {"model": "fox:base", "prompt": [[5]] * 900_000}),
    "tokens": ("/detokenize", {"model": "fox:base", "tokens": [5] * 1_900_000}),
    "no tokens": ("/detokenize", {"model": "fox:base", "tokens": [-5] * 1_300_000}),
    "template": ("/apply-template", {"messages": [EMPTY] * 16_000}),
}


@pytest.mark.parametrize("name", first(5, BODIES))
def test_a_body_of_very_many_things_keeps_nobody_waiting(scripted: Server, name: str):
    path, body = BODIES[name]
    data = as_json({"model": "fox"} | body)
    with others_served(scripted):
        response = post(scripted, data, path)
    assert response.status_code in (200, 400, 413), response.text
    if response.status_code != 200:
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_brackets_in_a_long_text_are_text(scripted: Server):
    text = '[{"\\' * 40_000
    found = post(scripted, {"model": "fox:base", "prompt": text}, "/tokenize")
    assert found.status_code == 200
    assert found.json()["count"] > 0
