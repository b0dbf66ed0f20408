"""/openapi.json says what the server does: every route answers as it is described there.

Schemathesis makes requests of the document and holds the answers to it. Most of them are steered
to a model that exists and to a few tokens: what is wholly made up ends as a 404.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.api.app import create_app
from server.config import load
from server.serving.registry import Registry
from tests.conftest import REPEATABLE, ROOT, Server

Json = dict[str, Any]

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
# Not those that end an engine, and no endless ones.
MODELS = ("fox", "fox:base", "fox:aligned", "fox@0.9", "cross", "cross:aligned", "begins")
ASK = [{"role": "user", "content": "Tell me a story."}]


def document() -> Json:
    registry = Registry(load(ROOT / "tests" / "scripted.yaml"))
    return create_app(registry, start=asyncio.Event().wait).openapi()


DOCUMENT = document()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [
    (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
]
LAW = settings(REPEATABLE, max_examples=25)


def nodes(node: Any) -> Iterator[Json]:
    if isinstance(node, dict):
        yield node
    for value in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        yield from nodes(value)


def described() -> Iterator[tuple[str, Json]]:
    for method, path in OPERATIONS:
        yield f"{method} {path}", DOCUMENT["paths"][path][method.lower()]


# -- the document ---------------------------------------------------------------------------------


def test_the_server_hands_out_the_document(scripted: Server):
    assert httpx.get(f"{scripted.url}/openapi.json").json() == json.loads(json.dumps(DOCUMENT))


def test_every_reference_leads_somewhere():
    found = [node["$ref"] for node in nodes(DOCUMENT) if "$ref" in node]
    assert len(found) > 20
    for reference in found:
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    assert not [node for node in nodes(DOCUMENT) if "$defs" in node]


def test_nothing_is_described_that_is_never_answered():
    schemas = DOCUMENT["components"]["schemas"]
    used = {node["$ref"].rpartition("/")[2] for node in nodes(DOCUMENT) if "$ref" in node}
    assert schemas.keys() == used
    for name, operation in described():
        assert "422" not in operation["responses"], name


def test_every_route_says_what_it_answers():
    for name, operation in described():
        assert operation["description"], name
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"], (name, status)
            if status != "200" and (name, status) != ("GET /ready", "503"):
                schema = response["content"]["application/json"]["schema"]
                body = "MessagesErrorBody" if "/v1/messages" in name else "ErrorBody"
                assert schema == {"$ref": f"#/components/schemas/{body}"}, (name, status)
            if status in ("429", "503", "529"):
                assert "Retry-After" in response["headers"], (name, status)
            for content in response["content"].values():
                assert content.get("schema") or content.get("itemSchema"), (name, status)


def test_a_key_may_be_asked_for():
    assert DOCUMENT["security"] == [{"key": []}, {"x-api-key": []}, {}]
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert schemes["key"]["scheme"] == "bearer"
    assert schemes["x-api-key"]["name"] == "x-api-key"


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]
)
def test_both_ways_to_answer_are_described(path: str):
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]
    assert content.keys() == {"application/json", "text/event-stream"}


# -- the answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_what_is_made_of_the_document_is_answered_as_it_says(
    scripted: Server, method: str, path: str
):
    @LAW
    @given(case=SCHEMA[path][method].as_strategy(), data=st.data())
    def law(case: schemathesis.Case, data: st.DataObject) -> None:
        steer(case, data)
        response = case.call(base_url=scripted.url, timeout=30)
        case.validate_response(response, checks=CHECKS)

    law()


def steer(case: schemathesis.Case, data: st.DataObject) -> None:
    """Mostly to a model that exists, and always to an answer that is soon over."""
    if data.draw(st.sampled_from([True, True, True, False]), label="steered"):
        model = data.draw(st.sampled_from(MODELS), label="model")
        if "model" in case.path_parameters:
            case.path_parameters["model"] = model
        if isinstance(case.body, dict):
            case.body["model"] = model
    if isinstance(case.body, dict):
        for field in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if field in case.body:
                case.body[field] = 2
        for field in ("n", "best_of", "min_tokens"):
            case.body.pop(field, None)


def good_bodies() -> Iterator[tuple[str, Json]]:
    chat = {"messages": ASK, "max_tokens": 12, "temperature": 0}
    raw = {"prompt": "Once", "max_tokens": 12, "temperature": 0}
    for model in ("fox", "fox:base", "fox:aligned"):
        for path, body in (("/v1/chat/completions", chat), ("/v1/completions", raw)):
            yield path, body | {"model": model}
            for scores in ({"logprobs": True, "top_logprobs": 2}, {"logprobs": 2}):
                if isinstance(scores["logprobs"], bool) == (path == "/v1/chat/completions"):
                    yield path, body | {"model": model, "nudging": {"trace": True}, **scores}
    read = {"model": "fox:base", "echo": True, "logprobs": 1}
    yield "/v1/completions", raw | read
    yield "/v1/completions", raw | read | {"max_tokens": 0}
    yield "/v1/chat/completions", chat | {"model": "fox", "n": 2}
    yield "/v1/chat/completions", {"model": "fox", "messages": ASK, "nudging": {"trace": True}}
    for body in ({"prompt": "x", "return_token_strs": True}, {"messages": ASK}):
        yield "/tokenize", {"model": "fox", **body}
    yield "/detokenize", {"model": "fox", "tokens": [5, 6]}
    yield "/apply-template", {"model": "fox", "messages": ASK}
    for model in ("fox", "fox:base"):
        message = {"model": model, "messages": ASK, "max_tokens": 12, "temperature": 0}
        yield "/v1/messages", message
        yield "/v1/messages", message | {"nudging": {"trace": True}, "stop_sequences": ["fox"]}
    yield "/v1/messages/count_tokens", {"model": "fox", "messages": ASK}
    more = {"model": "fox", "input": "Hi"}
    yield "/v1/responses", more | {"max_output_tokens": 3, "metadata": {"a": "b"}}
    scores = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    yield "/v1/responses", more | scores | {"nudging": {"trace": True}, "instructions": "Sing."}


GOOD = list(good_bodies())


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_what_is_answered_well_is_as_described(scripted: Server, path: str, body: Json):
    case = SCHEMA[path]["POST"].Case(body=body, media_type="application/json")
    response = case.call(base_url=scripted.url, timeout=30)
    assert response.status_code == 200, response.text
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize(
    ("path", "body"),
    [each for each in GOOD if each[0].startswith("/v1/") and "count" not in each[0]],
)
def test_every_event_of_a_stream_is_as_described(scripted: Server, path: str, body: Json):
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    event = content["itemSchema"]["properties"]["data"]["contentSchema"]
    validator = jsonschema_rs.validator_for({**event, "components": DOCUMENT["components"]})
    body = body | {"stream": True}
    if path != "/v1/messages":
        body |= {"stream_options": {"include_usage": True}}
    with httpx.stream("POST", scripted.url + path, json=body, timeout=30) as response:
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert len(lines) > 3
    if "completions" in path:
        assert lines.pop() == "[DONE]"
    for line in lines:
        assert "error" not in json.loads(line)
        validator.validate(json.loads(line))
