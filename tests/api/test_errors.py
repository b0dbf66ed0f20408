"""Bad input gets a clear 4xx in OpenAI's shape, and the server lives."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import Server

GOOD = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
CHAT = "/v1/chat/completions"


def post(live: Server, body: Any, path: str = CHAT, **kwargs: Any) -> httpx.Response:
    if isinstance(body, bytes):
        kwargs = {"headers": {"Content-Type": "application/json"}} | kwargs
        return httpx.post(live.url + path, content=body, timeout=30, **kwargs)
    return httpx.post(live.url + path, json=body, timeout=30, **kwargs)


def error(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error object, checked for its shape."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    found: dict[str, Any] = response.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    assert isinstance(found["message"], str)
    assert 0 < len(found["message"]) < 500
    assert found["param"] is None or isinstance(found["param"], str)
    assert found["code"] is None or isinstance(found["code"], str)
    assert response.headers["x-request-id"]
    return found


@pytest.fixture(autouse=True)
def _the_server_lives(live: Server):
    yield
    assert post(live, GOOD).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.type",
        ),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": [*"abcdefghijklmnopq"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 100}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 17}, "n"),
        ({"n": "2"}, "n"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop_token_ids": "5"}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [999_999]}, "stop_token_ids"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": "high"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"nudging": {"policy": "reference"}, "presence_penalty": 1}, "presence_penalty"),
        ({"nudging": {"policy": "reference"}, "min_tokens": 2}, "min_tokens"),
        (
            {"nudging": {"policy": "reference"}, "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"nudging": {"gamma": -0.1}}, "nudging.gamma"),
        ({"nudging": {"gamma": "high"}}, "nudging.gamma"),
        ({"nudging": {"entropy": 0}}, "nudging.entropy"),
        ({"nudging": {"entropy": 2}}, "nudging.entropy"),  # of another policy
        ({"nudging": {"policy": "entropy", "gamma": 0.4}}, "nudging.gamma"),
        ({"nudging": {"policy": "magic"}}, "nudging.policy"),
        ({"nudging": {"start": "user"}}, "nudging.start"),
        ({"nudging": {"max_rounds": 0}}, "nudging.max_rounds"),
        ({"nudging": {"end_lookahead": -1}}, "nudging.end_lookahead"),
        ({"nudging": {"gama": 0.4}}, "nudging.gama"),
        ({"nudging": 0.4}, "nudging"),
        ({"model": "demo:base", "nudging": {"gamma": 0.4}}, "nudging.gamma"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"nudging": {"policy": "reference"}, "temperature": 0.5}, "temperature"),
        ({"nudging": {"policy": "reference"}, "logprobs": True}, "logprobs"),
        ({"nudging": {"policy": "reference", "start": "base"}}, "nudging.start"),
        ({"nudging": {"policy": "reference", "end_lookahead": 4}}, "nudging.end_lookahead"),
        ({"nudging": {"policy": "ensemble", "gamma": 0.4}}, "nudging.gamma"),
        ({"nudging": {"policy": "ensemble"}, "temperature": 0.5}, "temperature"),
        ({"nudging": {"policy": "ensemble"}, "logit_bias": {"5": 1}}, "logit_bias"),
        (
            {"nudging": {"policy": "ensemble"}, "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"nudging": {"policy": "proxy_tuning"}}, "nudging.policy"),  # not allowed here
    ],
)
def test_a_wrong_value_is_named(live: Server, change: dict[str, Any], param: str):
    found = error(post(live, GOOD | change))
    assert found["type"] == "invalid_request_error"
    assert found["param"] == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("guided_json", {"type": "object"}),
        ("bad_words", ["x"]),
        ("include_stop_str_in_output", True),
        ("skip_special_tokens", False),
        ("add_special_tokens", True),
        ("return_token_ids", True),
        ("grammar", "root ::= 'a'"),
        ("length_penalty", 2.0),
        ("best_of", 3),
        ("prompt_logprobs", 1),
    ],
)
def test_what_is_not_served_is_refused_by_name(live: Server, field: str, value: Any):
    found = error(post(live, GOOD | {field: value}))
    assert found["param"] == field
    assert field in found["message"]


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize("choice", [None, "auto"])
def test_a_model_may_be_told_to_pass_over_tools_and_says_so(scripted: Server, choice: str | None):
    body = GOOD | {"model": "toolless"}
    offered = post(scripted, body | {"tools": TOOLS, "tool_choice": choice})
    plain = post(scripted, body)
    assert offered.status_code == 200
    assert offered.headers["x-nudge-tools"] == "unseen"
    assert "x-nudge-tools" not in plain.headers
    assert offered.json()["choices"] == plain.json()["choices"]
    assert offered.json()["usage"] == plain.json()["usage"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_but_a_call_that_is_demanded_can_not_be_passed_over(scripted: Server, choice: Any):
    body = GOOD | {"model": "toolless", "tools": TOOLS, "tool_choice": choice}
    assert error(post(scripted, body))["param"] == "tools"


@pytest.mark.parametrize("field", [{"tools": "f"}, {"tools": ["f"]}, {"tool_choice": "maybe"}])
def test_tools_of_the_wrong_type_are_named(scripted: Server, field: dict[str, Any]):
    (name,) = field
    assert error(post(scripted, GOOD | {"model": "toolless"} | field))["param"].startswith(name)


def test_what_asks_for_nothing_unusual_is_accepted(live: Server):
    harmless = {
        "n": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tools": [],
        "stop": None,
        "temperature": None,
        "seed": None,
        "user": "someone",
        "metadata": {"a": "b"},
        "store": False,
        "length_penalty": 1.0,
        "skip_special_tokens": True,
        "add_special_tokens": False,
        "priority": 0,
        "unknown_field_of_a_ui": {"x": 1},
        "tool_choice": "none",
    }
    assert post(live, GOOD | harmless).status_code == 200
    with_tools = {"tools": TOOLS, "tool_choice": "none"}
    assert post(live, GOOD | with_tools).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{'model': 'demo'}",
        b'{"model": "demo", "messages": [}',
        b'\xff\xfe{"model": "demo"}',
        b'{"model": "de\xffmo"}',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"messages": ' + b'{"a": ' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        json.dumps(GOOD).encode()[:-1] + b', "temperature": NaN}',
        json.dumps(GOOD).encode()[:-1] + b', "seed": 1e999}',
    ],
    ids=range(13),
)
def test_a_body_that_is_not_a_json_object_is_a_400(live: Server, body: bytes):
    assert error(post(live, body))["type"] == "invalid_request_error"


def test_another_content_type_is_a_400(live: Server):
    response = httpx.post(live.url + CHAT, content=b"{}", headers={"Content-Type": "text/plain"})
    assert "application/json" in error(response)["message"]


def test_a_huge_body_is_refused(live: Server):
    body = GOOD | {"messages": [{"role": "user", "content": "x" * 6_000_000}]}
    assert error(post(live, body), 413)["code"] == "request_too_large"


@pytest.mark.parametrize("model", ["nobody", "demo:other", "demo:base@0.3", "demo@x", "demo@-1"])
def test_an_unknown_model_is_a_404(live: Server, model: str):
    found = error(post(live, GOOD | {"model": model}), 404)
    assert (found["code"], found["param"]) == ("model_not_found", "model")
    assert error(httpx.get(f"{live.url}/v1/models/{model}"), 404)["code"] == "model_not_found"


def test_an_endless_model_name_is_not_echoed(live: Server):
    error(post(live, GOOD | {"model": "x" * 100_000}), 404)


@pytest.mark.parametrize("model", ["demo", "demo:base", "demo:aligned"])
@pytest.mark.parametrize("policy", ["nudging", "reference", "ensemble"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_a_context_is_a_400(
    live: Server, model: str, policy: str, stream: bool
):
    body = GOOD | {
        "model": model,
        "messages": [{"role": "user", "content": "word and " * 3000}],
        "stream": stream,
    }
    if model == "demo":
        body["nudging"] = {"policy": policy}
    assert error(post(live, body))["code"] == "context_length_exceeded"


def test_unknown_routes_and_methods_have_the_same_shape(live: Server):
    assert error(httpx.get(f"{live.url}/v2/chat"), 404)["code"] == "not_found"
    assert error(httpx.get(live.url + CHAT), 405)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt.0"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [[1], [1.5]]}, "prompt.1.0"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [1, 2], "model": "demo"}, "prompt"),
        ({"prompt": [999_999]}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"logprobs": 99}, "logprobs"),
        ({"echo": True, "logprobs": 1, "model": "demo"}, "echo"),
        ({"echo": True, "max_tokens": 0, "model": "demo"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": False, "logprobs": 1}, "max_tokens"),
        ({"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"echo": "yes"}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
    ],
)
def test_wrong_values_of_completions_are_named(live: Server, change: dict[str, Any], param: str):
    body = {"model": "demo:base", "prompt": "Hi", "max_tokens": 2} | change
    assert error(post(live, body, "/v1/completions"))["param"] == param


def test_the_client_raises_its_typed_errors(live: Server):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(**GOOD | {"model": "nobody"})
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**GOOD | {"temperature": 9})
        assert caught.value.param == "temperature"
