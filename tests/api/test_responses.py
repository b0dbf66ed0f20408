"""Responses through the official client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.api.test_chat import written
from tests.conftest import KEY, SCRIPTED, Server, serve

Json = dict[str, Any]

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
QUESTION = "What is the capital of Galicor?"
PATH = "/v1/responses"
TOOL = {"type": "function", "name": "look", "description": "Look.", "parameters": {}}


@pytest.fixture(scope="module")
def client(scripted: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def real(live: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, asked: Any = "Hi", *, model: str = "fox", **fields: Any) -> Any:
    return client.responses.create(model=model, input=asked, temperature=0, **fields)


def post(server: Server, body: Json) -> httpx.Response:
    return httpx.post(server.url + PATH, json={"model": "fox", "input": "Hi"} | body, timeout=60)


def error(server: Server, body: Json) -> Json:
    response = post(server, body)
    assert response.status_code == 400, response.text
    found: Json = response.json()["error"]
    assert found.keys() == {"message", "type", "param", "code"}
    assert found["type"] == "invalid_request_error"
    return found


def streamed(server: Server, body: Json) -> list[Json]:
    """The events, each of which OpenAI's client knows."""
    body = {"model": "fox", "input": "Hi", "temperature": 0, "stream": True} | body
    response = httpx.post(server.url + PATH, json=body, timeout=60)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for frame in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


# -- an answer ------------------------------------------------------------------------------------


def test_a_text_is_answered(client: openai.OpenAI):
    found = ask(client, max_output_tokens=4, metadata={"a": "b"}, instructions="Be brief.")
    Response.model_validate(found.to_dict())
    assert found.id.startswith("resp_")
    assert found.model == "fox"
    assert abs(found.created_at - time.time()) < 60
    assert found.status == "incomplete"
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.output_text
    assert found.usage.output_tokens == 4
    assert found.usage.total_tokens == found.usage.input_tokens + 4
    assert found.metadata == {"a": "b"}
    assert found.instructions == "Be brief."
    assert found.max_output_tokens == 4
    assert found.temperature == 0
    assert found.store is True


def test_an_answer_to_its_end_is_completed(client: openai.OpenAI):
    found = ask(client)
    assert found.status == "completed"
    assert found.incomplete_details is None
    [message] = found.output
    assert message.status == "completed"
    assert message.role == "assistant"


@pytest.mark.parametrize("model", ["demo", "demo:base", "demo:aligned", "demo@0.2"])
def test_it_is_the_answer_of_a_chat(real: openai.OpenAI, model: str):
    chat = real.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=40,
    )
    found = ask(real, QUESTION, model=model, max_output_tokens=40)
    assert found.output_text == chat.choices[0].message.content
    assert found.usage.input_tokens == chat.usage.prompt_tokens
    assert found.usage.output_tokens == chat.usage.completion_tokens
    assert ("nudging" in (found.usage.model_extra or {})) == (":" not in model)
    assert ("nudging" in (chat.usage.model_extra or {})) == (":" not in model)
    if ":" not in model:
        assert written(found) == written(chat)


@pytest.mark.parametrize("model", ["demo", "demo:base", "demo:aligned"])
@pytest.mark.parametrize("tokens", [5, 80])
def test_a_streamed_response_is_the_one_that_is_not_streamed(
    real: openai.OpenAI, model: str, tokens: int
):
    fields = {
        "model": model,
        "max_output_tokens": tokens,
        "extra_body": {"nudging": {"trace": True}},
    }
    whole = ask(real, QUESTION, **fields).to_dict()
    *events, last = ask(real, QUESTION, stream=True, **fields)
    found = last.response.to_dict()
    deltas = [each.delta for each in events if each.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == last.response.output_text
    assert {each.response.id for each in events if hasattr(each, "response")} == {found["id"]}

    def bare(response: Json) -> str:
        name = response["id"].removeprefix("resp_")
        return json.dumps(response | {"created_at": 0, "completed_at": 0}).replace(name, "")

    assert bare(found) == bare(whole)


def test_the_events_are_openais(scripted: Server):
    kinds = [event["type"].removeprefix("response.") for event in streamed(scripted, {})]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    cut = streamed(scripted, {"max_output_tokens": 3})
    assert cut[-1]["type"] == "response.incomplete"
    assert cut[-2]["item"]["status"] == "incomplete"


def test_the_clients_own_stream_builds_the_response(real: openai.OpenAI):
    with real.responses.stream(model="demo", input=QUESTION, temperature=0) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(texts) == final.output_text == ask(real, QUESTION, model="demo").output_text


async def test_an_async_client_gets_the_same(live: Server, real: openai.OpenAI):
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
        found = await client.responses.create(model="demo", input=QUESTION, temperature=0)
        async with client.responses.stream(model="demo", input=QUESTION, temperature=0) as stream:
            final = await stream.get_final_response()
    expected = ask(real, QUESTION, model="demo").output_text
    assert found.output_text == final.output_text == expected


class Capital(BaseModel):
    capital: bool


def test_a_schema_is_followed(scripted: Server, client: openai.OpenAI):
    parsed = client.responses.parse(model="fox", input="Hi", temperature=0, text_format=Capital)
    assert isinstance(parsed.output_parsed, Capital)
    assert parsed.text.format.type == "json_schema"
    with client.responses.stream(
        model="fox", input="Hi", temperature=0, text_format=Capital
    ) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    found = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=60)
    assert found.output_text.startswith("{")


def test_the_trace_tells_who_wrote_what(real: openai.OpenAI):
    fields = {"model": "demo", "extra_body": {"nudging": {"trace": True, "gamma": 0.4}}}
    found = ask(real, QUESTION, **fields)
    [message] = found.output
    pieces = message.model_extra["nudging"]["pieces"]
    assert "".join(piece["text"] for piece in pieces) == found.output_text
    assert {piece["speaker"] for piece in pieces} == {"base", "aligned"}
    assert found.model_extra["nudging"]["stop_reason"] == "aligned_end"
    events = ask(real, QUESTION, stream=True, **fields)
    deltas = [each for each in events if each.type == "response.output_text.delta"]
    assert [p for each in deltas for p in each.model_extra["nudging"]["pieces"]] == pieces
    assert "nudging" not in ask(real, QUESTION, model="demo").output[0].to_dict()


def test_log_probabilities_are_those_of_a_chat(real: openai.OpenAI):
    chat = real.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": QUESTION}],
        temperature=0,
        max_tokens=12,
        logprobs=True,
        top_logprobs=2,
    )
    fields = {
        "model": "demo",
        "max_output_tokens": 12,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    [message] = ask(real, QUESTION, **fields).output
    expected = [each.model_dump() for each in chat.choices[0].logprobs.content]
    found = [each.model_dump() for each in message.content[0].logprobs]
    assert len(found) == 12
    assert found == [{key: each[key] for key in found[0]} for each in expected]


# -- what is asked --------------------------------------------------------------------------------

USER = {"role": "user", "content": "Tell me of Galicor."}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "look", "arguments": "{}"}


@pytest.mark.parametrize(
    "said",
    [
        [{"role": "user", "content": "Hi"}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "status": "completed"}],
    ],
)
def test_a_text_may_be_an_item(client: openai.OpenAI, said: Any):
    assert ask(client, said).usage.input_tokens == ask(client, "Hi").usage.input_tokens


def test_instructions_are_a_systems_and_so_are_a_developers_words(client: openai.OpenAI):
    def tokens(said: Any, **fields: Any) -> int:
        return int(ask(client, said, max_output_tokens=1, **fields).usage.input_tokens)

    system = {"role": "system", "content": "Be brief."}
    expected = tokens([system, USER])
    assert expected > tokens([USER])
    assert tokens([USER], instructions="Be brief.") == expected
    assert tokens([system | {"role": "developer"}, USER]) == expected
    both = tokens([system, USER], instructions="Sing.")
    assert both == tokens([{"role": "system", "content": "Sing.\n\nBe brief."}, USER])


def test_what_was_answered_can_be_sent_again(client: openai.OpenAI):
    first = ask(client, max_output_tokens=5)
    again = [{"role": "user", "content": "Hi"}, *(i.to_dict() for i in first.output), USER]
    chained = ask(client, [USER], previous_response_id=first.id)
    assert ask(client, again).output_text == chained.output_text
    assert ask(client, again).usage.input_tokens == chained.usage.input_tokens


NAMED: list[tuple[Json, str]] = [
    *(
        ({"tools": [{"type": kind}]}, "tools.0")
        for kind in (
            "web_search",
            "web_search_preview",
            "file_search",
            "code_interpreter",
            "image_generation",
            "computer_use_preview",
            "mcp",
            "local_shell",
            "custom",
        )
    ),
    ({"tools": [TOOL, {"type": "function"}]}, "tools.1.name"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "look"}}, "tool_choice"),
    ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"n": 2}, "n"),
    ({"max_tokens": 5}, "max_output_tokens"),
    ({"messages": [USER]}, "input"),
    ({"response_format": {"type": "json_object"}}, "text.format"),
    ({"text": {"verbosity": "high"}}, "text.verbosity"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
        "text.format",
    ),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"include": ["everything"]}, "include.0"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"metadata": {"a": "x" * 513}}, "metadata"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"min_tokens": 9, "max_output_tokens": 2}, "min_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
    ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ({"input": []}, "input"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    ({"input": [{"role": "robot", "content": "Hi"}]}, "input.0.role"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input.0"),
    ({"input": [USER, {"type": "item_reference", "id": "msg_1_0"}]}, "input.1"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
    (
        {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}]},
        "input.0.encrypted_content",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input.0.content.0.type",
    ),
    ({"input": "word " * 5000}, "input"),
    ({"nudging": {"gamma": -1}}, "nudging.gamma"),
    ({"nudging": {"policy": "ensemble"}, "temperature": 1}, "temperature"),
    (
        {"nudging": {"policy": "reference"}, "include": ["message.output_text.logprobs"]},
        "include",
    ),
]


@pytest.mark.parametrize(("body", "param"), NAMED)
def test_what_is_wrong_or_not_served_is_named_as_it_is_here(
    scripted: Server, body: Json, param: str
):
    assert error(scripted, body)["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
        {"tools": None, "tool_choice": None, "reasoning": None, "text": None, "include": None},
        {"reasoning": {"effort": "none", "summary": "auto"}, "include": []},
        {"include": ["reasoning.encrypted_content"], "service_tier": "auto", "truncation": None},
        {"prompt_cache_key": "k", "safety_identifier": "s", "user": "u", "background": False},
        {"text": {"verbosity": "medium", "format": {"type": "text"}}, "client_metadata": {}},
        {"top_k": 5, "seed": 7, "min_p": 0.1, "stop": ["never"], "max_tool_calls": 3},
        {"max_output_tokens": 3.0, "unknown": {"a": 1}},
    ],
)
def test_what_asks_for_nothing_is_passed_over(scripted: Server, body: Json):
    response = post(scripted, body)
    assert response.status_code == 200, response.text
    Response.model_validate(response.json())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_what_no_answer_could_repeat_is_refused(scripted: Server, value: str):
    tool = f'{{"type": "function", "name": "x", "parameters": {{"a": {value}}}}}'
    schema = f'{{"type": "json_schema", "name": "x", "schema": {{"a": [{value}]}}}}'
    for more in (f'"tools": [{tool}], "tool_choice": "none"', f'"text": {{"format": {schema}}}'):
        body = f'{{"model": "fox", "input": "Hi", {more}}}'
        headers = {"Content-Type": "application/json"}
        response = httpx.post(scripted.url + PATH, content=body, headers=headers)
        assert response.status_code == 400, response.text


def test_tools_that_are_not_to_be_called_are_shown_again(client: openai.OpenAI):
    found = ask(client, tools=[TOOL], tool_choice="none", parallel_tool_calls=False)
    assert found.tools[0].name == "look"
    assert found.tool_choice == "none"
    assert found.parallel_tool_calls is False


# -- what is kept ---------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_what_was_kept(real: openai.OpenAI):
    first = ask(real, QUESTION, model="demo", instructions="Sing.")
    second = ask(real, "And of Myruria?", model="demo", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    whole = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And of Myruria?"},
    ]
    # Without the instructions, as at OpenAI.
    stateless = ask(real, whole, model="demo")
    assert second.output_text == stateless.output_text
    assert second.usage.input_tokens == stateless.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_kept_is_what_was_answered(client: openai.OpenAI, stream: bool):
    found = ask(client, stream=stream)
    found = list(found)[-1].response if stream else found
    assert client.responses.retrieve(found.id).to_dict() == found.to_dict()
    deleted = httpx.delete(f"{client.base_url}responses/{found.id}")
    assert deleted.json() == {"id": found.id, "object": "response", "deleted": True}
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            gone(found.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list(found.id)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, previous_response_id=found.id)
    assert refused.value.code == "previous_response_not_found"


def test_what_it_answered_is_listed(client: openai.OpenAI):
    output = {"type": "function_call_output", "call_id": "c1", "output": "blue"}
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    items = [USER, {"role": "assistant", "content": "Hm."}, thought, CALL, output]
    first = ask(client, [USER, {"role": "assistant", "content": "Hm."}, thought, CALL])
    del items[-1]
    listed = client.responses.input_items.list(first.id, order="asc").data
    kinds = [item.type for item in listed]
    assert kinds == ["message", "message", "reasoning", "function_call"]
    assert listed[0].content[0].text == USER["content"]
    assert listed[1].content[0].type == "output_text"
    assert listed[3].to_dict() == CALL | {"status": "completed"}
    assert len({item.id for item in listed}) == 4
    # Newest first, page by page.
    page = client.responses.input_items.list(first.id, limit=1)
    assert [item.id for item in page] == [item.id for item in reversed(listed)]
    assert page.has_more is True


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=x", "after")],
)
def test_a_wrong_page_is_named(client: openai.OpenAI, query: str, param: str):
    found = ask(client, max_output_tokens=1)
    response = httpx.get(f"{client.base_url}responses/{found.id}/input_items?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_what_is_kept_can_neither_be_streamed_nor_cancelled(client: openai.OpenAI):
    found = ask(client, max_output_tokens=1)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.retrieve(found.id, stream=True)
    assert refused.value.param == "stream"
    with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
        client.responses.cancel(found.id)


def test_store_false_keeps_nothing(client: openai.OpenAI):
    found = ask(client, max_output_tokens=1, store=False)
    assert found.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(found.id)


def test_a_response_that_its_client_left_is_not_kept(scripted: Server, client: openai.OpenAI):
    body = {"model": "endless", "input": "Hi", "stream": True}
    with httpx.stream("POST", scripted.url + PATH, json=body) as response:
        lines = response.iter_lines()
        next(lines)
        event = json.loads(next(lines).removeprefix("data: "))
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(event["response"]["id"])


def test_nobody_sees_what_another_key_keeps():
    keys = {"NUDGE_SERVER__API_KEYS": f'["{KEY}", "sk-other"]'}
    server = serve("--config", SCRIPTED, env=keys | {"NUDGE_SERVER__STORED_RESPONSES": "2"})
    try:
        clients = [
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
            for key in (KEY, "sk-other")
        ]
        ours, theirs = clients
        found = ask(ours, max_output_tokens=1)
        assert ours.responses.retrieve(found.id).id == found.id
        for call in (theirs.responses.retrieve, theirs.responses.delete):
            with pytest.raises(openai.NotFoundError):
                call(found.id)
        with pytest.raises(openai.BadRequestError):
            ask(theirs, previous_response_id=found.id)
        refers = [{"type": "item_reference", "id": found.output[0].id}]
        with pytest.raises(openai.BadRequestError):
            ask(theirs, refers)
        assert ask(ours, [*refers, USER], max_output_tokens=1)
        assert httpx.get(f"{server.url}{PATH}/{found.id}").status_code == 401
        # Two are kept: the next two of either make room for themselves.
        ask(theirs, max_output_tokens=1)
        with pytest.raises(openai.NotFoundError):
            ours.responses.retrieve(found.id)
        for each in clients:
            each.close()
    finally:
        assert server.stop() == 0


def test_a_server_may_keep_nothing():
    server = serve("--config", SCRIPTED, env={"NUDGE_SERVER__STORED_RESPONSES": "0"})
    try:
        assert error(server, {"store": True})["param"] == "store"
        found = post(server, {"max_output_tokens": 1}).json()
        assert found["store"] is False
        assert httpx.get(f"{server.url}{PATH}/{found['id']}").status_code == 404
    finally:
        assert server.stop() == 0


# -- failures -------------------------------------------------------------------------------------


def test_a_failure_in_mid_stream_raises_in_the_client(scripted: Server, client: openai.OpenAI):
    *_, last = events = streamed(scripted, {"model": "broken:aligned"})
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert last["response"]["error"]["code"] == "server_error"
    with pytest.raises(openai.APIError) as failed:
        list(ask(client, model="broken:aligned", stream=True))
    assert failed.value.code == "engine_unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_has_its_status(scripted: Server, stream: bool):
    response = post(scripted, {"model": "dead:aligned", "stream": stream})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_unavailable"
    assert response.headers["retry-after"]


def test_errors_are_typed_in_the_client(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, model="nobody")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, "word " * 5000)
    assert long.value.code == "context_length_exceeded"


def test_all_methods_of_a_path_are_named_to_who_has_another(scripted: Server):
    refused = httpx.put(f"{scripted.url}{PATH}/resp_x")
    assert refused.status_code == 405
    assert refused.headers["allow"] == "DELETE, GET, HEAD"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", PATH, 405), ("PUT", f"{PATH}/x", 405), ("GET", f"{PATH}/x/y", 404)],
)
def test_other_paths_fail_in_the_same_shape(scripted: Server, method: str, path: str, status: int):
    response = httpx.request(method, scripted.url + path)
    assert response.status_code == status
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


def test_what_is_kept_can_be_asked_for_by_head(scripted: Server, client: openai.OpenAI):
    found = ask(client, max_output_tokens=1)
    for path in (found.id, f"{found.id}/input_items", "resp_none"):
        head, get = (
            httpx.request(method, f"{scripted.url}{PATH}/{path}") for method in ("HEAD", "GET")
        )
        assert head.status_code == get.status_code
        assert head.headers["content-length"] == get.headers["content-length"]
        assert not head.content
