"""Messages through Anthropic's official client, on scripted engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.conftest import KEY, Server

Json = dict[str, Any]

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
ASK: Any = [{"role": "user", "content": "Tell me a story."}]
STORY = "Onceupon a time there was a fox.  Shean.n."
"""What the scripted pair makes of its two scripts."""


def client_of(server: Server, **how: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        **{"base_url": server.url, "api_key": "none", "max_retries": 0, **how}
    )


@pytest.fixture(scope="module")
def client(scripted: Server) -> Iterator[anthropic.Anthropic]:
    with client_of(scripted) as client:
        yield client


def ask(client: anthropic.Anthropic, **fields: Any) -> Message:
    return client.messages.create(**{"model": "fox", "max_tokens": 60, "messages": ASK} | fields)


def post(server: Server, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
    body = {"model": "fox", "max_tokens": 60, "messages": ASK, **fields}
    return httpx.post(server.url + path, json=body, timeout=30)


def text(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# -- whole and streamed ---------------------------------------------------------------------------


def test_an_answer_has_anthropics_shape(client: anthropic.Anthropic, scripted: Server):
    message = ask(client)
    assert message.id.startswith("msg_")
    assert text(message) == STORY
    assert message.model == "fox"
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert message._request_id
    Message.model_validate(post(scripted).json())


@pytest.mark.parametrize("model", ["fox", "fox:base", "fox:aligned", "cross", "letters", "tale"])
def test_a_streamed_answer_is_the_one_that_is_not_streamed(client: anthropic.Anthropic, model: str):
    whole = ask(client, model=model, max_tokens=30)
    with client.messages.stream(model=model, max_tokens=30, messages=ASK) as stream:
        said = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert said == text(streamed) == text(whole)
    assert streamed.stop_reason == whole.stop_reason
    counted = streamed.usage.to_dict()
    # SDKs take from the last event what they know.
    ours = {key: value for key, value in whole.usage.to_dict().items() if key != "nudging"}
    assert {key: counted[key] for key in ours} == ours


def test_a_stream_is_framed_as_anthropics(scripted: Server):
    frames = post(scripted, stream=True).text.split("\n\n")[:-1]
    kinds = []
    for frame in frames:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        EVENT.validate_python(event)
        assert name == f"event: {event['type']}"
        kinds.append(event["type"])
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_both_are_read_by_the_sdks_beta_too(client: anthropic.Anthropic):
    beta = client.beta.messages.create(
        model="fox",
        max_tokens=60,
        messages=ASK,
        betas=["interleaved-thinking-2025-05-14", "context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    assert beta.content[0].to_dict() == {"type": "text", "text": STORY}


@pytest.mark.parametrize(
    ("fields", "reason", "matched", "said"),
    [
        ({"max_tokens": 3}, "max_tokens", None, "Once"),
        ({"stop_sequences": ["was", "zebra"]}, "stop_sequence", "was", "Onceupon a time there "),
        ({"stop_sequences": ["zebra"]}, "end_turn", None, STORY),
    ],
)
def test_it_says_why_it_ended(
    client: anthropic.Anthropic, fields: Json, reason: str, matched: str | None, said: str
):
    message = ask(client, **fields)
    assert (message.stop_reason, message.stop_sequence) == (reason, matched)
    assert text(message) == said


def test_the_trace_is_there_for_whoever_asks(client: anthropic.Anthropic):
    plain = ask(client)
    assert not plain.model_extra
    traced = ask(client, extra_body={"nudging": {"trace": True, "gamma": 0.4}})
    nudging = (traced.model_extra or {})["nudging"]
    assert "".join(piece["text"] for piece in nudging["pieces"]) == STORY
    assert {piece["speaker"] for piece in nudging["pieces"]} == {"base", "aligned"}
    assert (plain.usage.model_extra or {})["nudging"]["rounds"] == nudging["rounds"]


def test_gamma_is_heeded(client: anthropic.Anthropic):
    alone = text(ask(client, extra_body={"nudging": {"gamma": 1.5}}))
    assert alone == text(ask(client, model="fox:aligned")) != STORY


def test_an_answer_goes_on_with_what_was_begun(client: anthropic.Anthropic):
    begun = ask(client, messages=[*ASK, {"role": "assistant", "content": "Once upon a time"}])
    new = ask(client)
    assert begun.usage.input_tokens > new.usage.input_tokens
    assert text(begun)


def test_json_holds(client: anthropic.Anthropic):
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    form: Any = {"format": {"type": "json_schema", "schema": schema}}
    message = ask(client, model="fox", output_config=form, max_tokens=20)
    assert json.loads(text(message)) == {"a": 1}


# -- counting -------------------------------------------------------------------------------------

SYSTEMS: list[Any] = ["Be brief.", [{"type": "text", "text": "Be brief. <|im_end|>"}]]


@pytest.mark.parametrize("model", ["fox", "fox:base", "fox:aligned", "cross"])
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("begun", [[], [{"role": "assistant", "content": "Once "}]])
def test_what_is_counted_is_what_an_answer_reads(
    client: anthropic.Anthropic, model: str, system: Any, begun: list[Any]
):
    messages = [*ASK, *begun]
    counted = client.messages.count_tokens(model=model, system=system, messages=messages)
    read = ask(client, model=model, system=system, messages=messages, max_tokens=1).usage
    assert counted.input_tokens == read.input_tokens > 0


def test_a_prompt_that_is_too_long_can_be_counted(client: anthropic.Anthropic):
    """So that a client knows by how much."""
    messages: Any = [{"role": "user", "content": "word " * 5000}]
    assert client.messages.count_tokens(model="fox", messages=messages).input_tokens > 5000
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long") as caught:
        ask(client, messages=messages)
    assert caught.value.error_code == "context_length_exceeded"


# -- tools ----------------------------------------------------------------------------------------

LOOK: Any = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}


def test_a_conversation_with_calls_is_read(client: anthropic.Anthropic, scripted: Server):
    """The second turn of a tool loop."""
    called: Any = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "foxes"}}
    found: Any = {"type": "tool_result", "tool_use_id": "t1", "content": "many"}
    talk = [*ASK, {"role": "assistant", "content": [called]}, {"role": "user", "content": [found]}]
    assert text(ask(client, model="toolless", tools=[LOOK], messages=talk)) == STORY
    response = post(scripted, model="toolless", tools=[LOOK], messages=talk)
    assert response.headers["x-nudge-tools"] == "unseen"


# -- agents ---------------------------------------------------------------------------------------


def agents_request() -> Json:
    """In the shape of Claude Code's, by its documentation of what gateways see."""
    names = ("Bash", "Read", "Edit", "Write", "Glob", "Grep", "WebFetch", "Task", "TodoWrite")
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"path": {"type": "string", "description": "Where. " * 40}},
        "required": ["path"],
        "additionalProperties": False,
    }
    tools = [{"name": n, "description": "Does it. " * 200, "input_schema": schema} for n in names]
    kept = {"type": "ephemeral", "ttl": "1h"}
    tools[-1]["cache_control"] = kept
    system = [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.273; cch=00000;"},
        {"type": "text", "text": "You are an agent.", "cache_control": kept},
        {"type": "text", "text": "Keep to the rules of the house. " * 2500, "cache_control": kept},
    ]
    reminder = {"type": "text", "text": "<system-reminder>\nToday is Thursday.\n</system-reminder>"}
    return {
        "model": "wide",
        "system": system,
        "messages": [{"role": "user", "content": [reminder, {"type": "text", "text": "count"}]}],
        "tools": tools,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }


AGENT_HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,effort-2025-11-24",
    "x-claude-code-session-id": "0b9e",
    "x-app": "cli",
    "authorization": "Bearer none",
}


def test_an_agents_request_is_answered_and_counted(scripted: Server):
    body = agents_request()
    asked = body | {"max_tokens": 8, "stream": True, "metadata": {"user_id": "u"}}
    counting = "/v1/messages/count_tokens?beta=true"
    with httpx.Client(base_url=scripted.url, headers=AGENT_HEADERS, timeout=60) as client:
        counted = client.post(counting, json=body)
        assert counted.status_code == 200, counted.text
        tokens = counted.json()["input_tokens"]
        response = client.post("/v1/messages?beta=true", json=asked)
    assert tokens > 15_000
    assert response.status_code == 200, response.text
    # What it asks for in vain is said.
    assert response.headers["x-nudge-passed-over"] == "thinking, output_config.effort"
    assert response.headers["x-nudge-tools"] == "unseen"
    first, *_, last, stop = (
        json.loads(line.removeprefix("data: "))
        for line in response.text.splitlines()
        if line.startswith("data: ")
    )
    assert first["message"]["usage"]["input_tokens"] == tokens
    assert last["usage"]["input_tokens"] == tokens
    assert last["delta"]["stop_reason"] == "max_tokens"
    assert stop == {"type": "message_stop"}


def test_the_block_for_whoever_bills_costs_nothing(client: anthropic.Anthropic):
    system: Any = agents_request()["system"]
    with_it = client.messages.count_tokens(model="wide", system=system, messages=ASK)
    without = client.messages.count_tokens(model="wide", system=system[1:], messages=ASK)
    assert with_it.input_tokens == without.input_tokens


def test_models_are_listed_in_its_shape(client: anthropic.Anthropic, scripted: Server):
    listed = list(client.models.list(limit=1000))
    assert {"fox", "fox:base", "wide"} <= {model.id for model in listed}
    (wide,) = [model for model in listed if model.id == "wide"]
    assert wide.type == "model"
    assert wide.display_name == "wide"
    assert wide.max_input_tokens == 100_000
    assert wide.created_at.year >= 2025
    assert client.models.retrieve("fox").id == "fox"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("none")
    assert httpx.get(f"{scripted.url}/v1/models").json()["object"] == "list"


# -- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
        ({"model": "none"}, anthropic.NotFoundError, "model"),
        ({"model": "dead"}, anthropic.OverloadedError, None),
        ({"extra_body": {"temperature": 2}}, anthropic.BadRequestError, "temperature"),
        (
            {"model": "toolless", "tools": [LOOK], "tool_choice": {"type": "any"}},
            anthropic.BadRequestError,
            "tools",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            anthropic.BadRequestError,
            "messages.0.content.0",
        ),
    ],
)
def test_failures_are_typed(
    client: anthropic.Anthropic, fields: Json, kind: type[Exception], param: str | None
):
    with pytest.raises(kind) as caught:
        ask(client, **fields)
    failure: Any = caught.value
    assert failure.body["type"] == "error"
    assert failure.body["request_id"] == failure.request_id
    assert failure.body["error"]["details"]["param"] == param
    assert failure.api_message


def test_an_engine_that_is_gone_is_an_overload(scripted: Server):
    response = post(scripted, model="dead")
    assert response.status_code == 529
    assert response.json()["error"]["type"] == "overloaded_error"
    assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/messages", b"{", 400, "invalid_request_error"),
        ("/v1/messages/count_tokens", b"[]", 400, "invalid_request_error"),
        ("/v1/messages/batches", b"{}", 404, "not_found_error"),
        ("/v1/messages", b'{"x": "' + b"x" * 5_000_000 + b'"}', 413, "request_too_large"),
    ],
)
def test_so_are_those_of_any_layer(
    scripted: Server, path: str, body: bytes, status: int, kind: str
):
    head = {"Content-Type": "application/json"}
    response = httpx.post(scripted.url + path, content=body, headers=head)
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert response.json()["request_id"] == response.headers["request-id"]


def test_a_method_that_is_not_there_is_refused_in_its_shape(scripted: Server):
    response = httpx.get(f"{scripted.url}/v1/messages")
    assert response.status_code == 405
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_stream_that_breaks_ends_with_an_error(client: anthropic.Anthropic, scripted: Server):
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        client.messages.stream(model="broken", max_tokens=60, messages=ASK) as stream,
    ):
        stream.get_final_message()
    assert caught.value.type == "overloaded_error"
    raw = post(scripted, model="broken", stream=True)
    if raw.status_code == 200:
        assert raw.text.split("\n\n")[-2].startswith("event: error\n")
        assert "message_stop" not in raw.text


# -- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"api_key": KEY}, {"api_key": None, "auth_token": KEY}])
def test_a_key_comes_in_either_header(keyed: Server, how: Json):
    with client_of(keyed, **how) as client:
        assert text(ask(client)) == STORY
        assert client.messages.count_tokens(model="fox", messages=ASK).input_tokens
        assert list(client.models.list())


@pytest.mark.parametrize("how", [{"api_key": "wrong"}, {"api_key": None, "auth_token": "wrong"}])
def test_another_key_is_an_authentication_error(keyed: Server, how: Json):
    with client_of(keyed, **how) as client, pytest.raises(anthropic.AuthenticationError) as caught:
        ask(client)
    assert caught.value.type == "authentication_error"
    assert "wrong" not in str(caught.value)


def test_one_known_key_is_enough_on_any_route(keyed: Server):
    path = f"{keyed.url}/v1/models"
    both = {"x-api-key": KEY, "authorization": "Bearer other"}
    for headers in ({"x-api-key": KEY}, both, {"x-api-key": "x", "authorization": f"Bearer {KEY}"}):
        assert httpx.get(path, headers=headers).status_code == 200
    for headers in ({}, {"x-api-key": ""}, {"x-api-key": KEY + "x"}, {"authorization": KEY}):
        assert httpx.get(path, headers=headers).status_code == 401
