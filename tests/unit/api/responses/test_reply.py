"""A streamed response builds, event by event, the one that isn't streamed; each event and each
response is one that OpenAI's client knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from server.api.dialect import Written
from server.api.errors import ApiError
from server.api.responses.dialect import Responses
from server.api.responses.reply import Kept
from server.api.store import Shelf, Store
from server.core import (
    Finished,
    Message,
    Piece,
    Rejected,
    ScoredToken,
    StopReason,
    ToolCall,
    Usage,
)
from server.decoding.parsing import CallArguments, CallBegins, Content, Part, Reasoning

Json = dict[str, Any]

COST = Usage(base_prompt_tokens=7, aligned_prompt_tokens=9, base_tokens=5, aligned_tokens=3)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}


def reply(shelf: Shelf[Kept] | None = None, **fields: Any) -> Any:
    body = {"model": "fox", "input": "Hi", **fields}
    shelf = Store[Kept](10, 10**6).of(None) if shelf is None else shelf
    return Responses().parse(json.dumps(body).encode(), shelf)[1]


def piece(text: str, **more: Any) -> Piece:
    return Piece(text, "base", 0.5, 1, **more)


def says(text: str) -> Content:
    return Content(piece(text, scored=(ScoredToken(text.encode(), -0.5, ((b"x", -0.1),)),)))


ANSWER: list[Part] = [
    Reasoning(piece("Hm")),
    Reasoning(piece("m.")),
    says("I "),
    says("look."),
    CallBegins(0, "call_1", "look", piece("look", rejected=Rejected("x", 0.1))),
    CallArguments(0, piece('{"a":')),
    CallArguments(0, piece("1}")),
    CallBegins(1, "call_2", "look", piece("look")),
    CallArguments(1, piece("{}")),
]


def finished(parts: Sequence[Part], reason: StopReason = "aligned_end") -> Finished:
    calls = sum(isinstance(part, CallBegins) for part in parts)
    thought = sum(isinstance(part, Reasoning) for part in parts)
    return Finished(reason, COST, calls=calls, reasoning_tokens=thought)


def events(reply: Any, parts: Sequence[Part], end: Finished | ApiError) -> list[Json]:
    frames = [*reply.begins(0, "", None)]
    for part in parts:
        frames += reply.shows(0, part, None)
    if isinstance(end, Finished):
        frames += [*reply.shows(0, end, None), *reply.over(COST)]
    else:
        frames += reply.failed(end)
    found = []
    for frame in frames:
        name, data, *rest = frame.decode().split("\n")
        assert rest == ["", ""]
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def whole(reply: Any, parts: Sequence[Part], end: Finished) -> Json:
    found: Json = reply.whole([Written(parts, end)], COST)
    Response.model_validate(found)
    return json.loads(json.dumps(found))


def built(events: Sequence[Json]) -> list[Json]:
    """The output that the events build, by OpenAI's rules."""
    output: list[Json] = []
    for event in events:
        at = output[event["output_index"]] if event.get("output_index", 99) < len(output) else {}
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(output)
                output.append(json.loads(json.dumps(event["item"])))
            case "content_part.added":
                at["content"].append(event["part"])
            case "output_text.delta":
                at["content"][0]["text"] += event["delta"]
                at["content"][0]["logprobs"] += event["logprobs"]
            case "reasoning_text.delta":
                at["content"][0]["text"] += event["delta"]
            case "function_call_arguments.delta":
                at["arguments"] += event["delta"]
            case "output_text.done" | "reasoning_text.done":
                assert event["text"] == at["content"][0]["text"]
            case "function_call_arguments.done":
                assert event["arguments"] == at["arguments"]
            case "content_part.done":
                assert event["part"] == at["content"][0]
            case "output_item.done":
                pieces = event["item"].pop("nudging", None)
                at["status"] = event["item"]["status"]
                assert event["item"] == at
                if pieces is not None:
                    at["nudging"] = pieces
    return output


def same(one: Json, other: Json) -> bool:
    """But for their ids and times."""

    def bare(response: Json) -> str:
        name = response["id"].removeprefix("resp_")
        times = {"created_at": 0} | ({"completed_at": 0} if "completed_at" in response else {})
        return json.dumps(response | times, sort_keys=True).replace(name, "")

    return bare(one) == bare(other)


FIELDS: list[Json] = [
    {},
    {"nudging": {"trace": True}},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 1},
    {
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "look"},
        "parallel_tool_calls": False,
    },
    {"instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5, "user": "me"},
    {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}},
    {"reasoning": {"effort": None, "summary": "auto"}, "store": False},
]


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("parts", [ANSWER, ANSWER[2:4], ANSWER[:2], ANSWER[4:], []])
@pytest.mark.parametrize("reason", ["aligned_end", "length"])
def test_a_streamed_response_is_the_whole_one(fields: Json, parts: list[Part], reason: StopReason):
    end = finished(parts, reason)
    streamed = events(reply(**fields), parts, end)
    last = streamed[-1]["response"]
    assert same(last, whole(reply(**fields), parts, end))
    output = built(streamed[:-1])
    assert [item | {"nudging": 0} for item in output] == [
        item | {"nudging": 0} for item in last["output"]
    ]
    assert streamed[-1]["type"] == f"response.{last['status']}"


PARTS = st.lists(
    st.sampled_from(
        [
            says("a"),
            says("é"),
            Content(piece("")),
            Content(piece("", scored=(ScoredToken(b"\xf0", -1.0),))),
            Reasoning(piece("b")),
            Reasoning(piece("")),
        ]
    )
    | st.integers(0, 2),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(PARTS, st.sampled_from(FIELDS), st.sampled_from(["aligned_end", "length", "stop_string"]))
def test_so_is_one_of_any_parts(drawn: list[Any], fields: Json, reason: StopReason):
    parts: list[Part] = []
    calls = 0
    for each in drawn:
        if not isinstance(each, int):
            parts.append(each)
            continue
        parts.append(CallBegins(calls, f"call_{calls}", "look", piece("look")))
        parts += [CallArguments(calls, piece("{}"[n : n + 1])) for n in range(each)]
        calls += 1
    end = finished(parts, reason)
    streamed = events(reply(**fields), parts, end)
    last = streamed[-1]["response"]
    assert same(last, whole(reply(**fields), parts, end))
    output = built(streamed[:-1])
    assert [item | {"nudging": 0} for item in output] == [
        item | {"nudging": 0} for item in last["output"]
    ]
    shown = [item["type"] for item in last["output"]]
    assert shown.count("function_call") == calls
    texts = [part["text"] for item in last["output"] for part in item.get("content", [])]
    said = [part.piece.text for part in parts if isinstance(part, Content | Reasoning)]
    assert "".join(texts) == "".join(said)


def test_the_items_are_what_was_thought_said_and_called():
    found = whole(reply(), ANSWER, finished(ANSWER))
    thought, message, one, two = found["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert message["content"][0]["text"] == "I look."
    assert (one["call_id"], one["name"], one["arguments"]) == ("call_1", "look", '{"a":1}')
    assert (two["call_id"], two["arguments"]) == ("call_2", "{}")
    assert {item["status"] for item in found["output"]} == {"completed"}
    assert found["status"] == "completed"
    assert found["incomplete_details"] is None
    assert found["usage"]["input_tokens"] == 7
    assert found["usage"]["output_tokens"] == 8
    assert found["usage"]["total_tokens"] == 15
    assert found["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert found["usage"]["nudging"]["nudged_tokens"] == 3
    assert Response.model_validate(found).output_text == "I look."


def test_what_was_cut_says_so_in_its_last_item():
    found = whole(reply(), ANSWER[:6], finished(ANSWER[:6], "length"))
    assert found["status"] == "incomplete"
    assert found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in found["output"]] == ["completed", "completed", "incomplete"]
    assert "completed_at" not in found


def test_nothing_is_an_empty_message():
    [item] = whole(reply(), [], finished([]))["output"]
    assert item["content"][0]["text"] == ""


def test_a_trace_is_with_the_items_and_its_end_with_the_response():
    found = whole(reply(nudging={"trace": True}), ANSWER, finished(ANSWER))
    assert found["nudging"] == {"stop_reason": "aligned_end", "rounds": 0}
    texts = [[p["text"] for p in item["nudging"]["pieces"]] for item in found["output"]]
    assert texts == [["Hm", "m."], ["I ", "look."], ["look", '{"a":', "1}"], ["look", "{}"]]
    assert found["output"][2]["nudging"]["pieces"][0]["rejected"] == {"text": "x", "top_prob": 0.1}
    streamed = events(reply(nudging={"trace": True}), ANSWER, finished(ANSWER))
    pieces = [
        piece
        for event in streamed
        if event["type"].endswith(".delta")
        for piece in event["nudging"]["pieces"]
    ]
    assert [piece["text"] for piece in pieces] == [text for each in texts for text in each]
    bare = json.dumps(events(reply(), ANSWER, finished(ANSWER))[:-1])
    assert "nudging" not in bare


def test_log_probabilities_come_where_they_are_asked_for():
    asked = reply(include=["message.output_text.logprobs"], top_logprobs=1)
    [_, message, *_] = whole(asked, ANSWER, finished(ANSWER))["output"]
    [first, _] = message["content"][0]["logprobs"]
    assert first == {
        "token": "I ",
        "logprob": -0.5,
        "bytes": [73, 32],
        "top_logprobs": [{"token": "x", "logprob": -0.1, "bytes": [120]}],
    }
    assert whole(reply(), ANSWER, finished(ANSWER))["output"][1]["content"][0]["logprobs"] == []


def test_the_end_of_text_is_no_token_of_what_is_said():
    end = Content(piece("", scored=(ScoredToken(b"", -1.0, (), "end"),)))
    parts = [*ANSWER, end]
    asked = reply(include=["message.output_text.logprobs"])
    found = whole(asked, parts, finished(parts))
    assert [item["type"] for item in found["output"]][-1] == "function_call"
    parts = [*ANSWER[2:4], end]
    asked = reply(include=["message.output_text.logprobs"])
    [message] = whole(asked, parts, finished(parts))["output"]
    assert len(message["content"][0]["logprobs"]) == 2


@pytest.mark.parametrize("parts", [[], ANSWER[:3]])
def test_a_failure_ends_a_stream_with_both_of_its_events(parts: list[Part]):
    failure = ApiError(503, "the engine died", kind="server_error", code="engine_unavailable")
    shelf = Store[Kept](10, 10**6).of(None)
    asked = reply(shelf)
    *_, error, last = events(asked, parts, failure)
    assert error["type"] == "error"
    assert (error["code"], error["message"]) == ("engine_unavailable", "the engine died")
    assert error["error"]["code"] == "engine_unavailable"
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "the engine died"}
    assert shelf.get(asked.id) is None


def test_a_failure_before_anything_is_a_stream_all_the_same():
    frames = [*reply().failed(ApiError(504, "late", code="timeout"))]
    kinds = [frame.split(b"\n")[0] for frame in frames]
    assert kinds[0] == b"event: response.created"
    assert kinds[-1] == b"event: response.failed"


# -- what is kept ---------------------------------------------------------------------------------


def test_what_is_kept_is_what_was_shown_and_the_conversation_goes_on():
    shelf = Store[Kept](10, 10**6).of(None)
    first = reply(shelf, instructions="Be brief.", input="One?")
    found = whole(first, ANSWER, finished(ANSWER))
    kept = shelf.get(first.id)
    assert kept is not None
    assert json.loads(kept.shown) == found
    [item] = json.loads(kept.items)
    assert item["content"] == [{"type": "input_text", "text": "One?"}]
    answered = [
        {"type": "function_call_output", "call_id": "call_1", "output": "blue"},
        {"role": "user", "content": "And?"},
    ]
    more = {"model": "fox", "previous_response_id": first.id, "input": answered}
    ask, second = Responses().parse(json.dumps(more).encode(), shelf)
    calls = (ToolCall("call_1", "look", '{"a":1}'), ToolCall("call_2", "look", "{}"))
    expected = [
        Message("user", "One?"),
        Message("assistant", "I look.", calls, reasoning="Hmm."),
        Message("tool", "blue", call_id="call_1"),
        Message("user", "And?"),
    ]
    assert ask.prompt.messages == expected
    # What was streamed is kept too, and goes on without the response that it went on from.
    events(second, [says("So.")], finished([]))
    assert shelf.drop(first.id)
    third = more | {"previous_response_id": second.id, "input": "Well?", "instructions": "Sing."}
    ask, _ = Responses().parse(json.dumps(third).encode(), shelf)
    assert ask.prompt.messages == [
        Message("system", "Sing."),
        *expected,
        Message("assistant", "So."),
        Message("user", "Well?"),
    ]


def test_nothing_is_kept_that_nobody_saw_the_end_of():
    shelf = Store[Kept](10, 10**6).of(None)
    asked = reply(shelf)
    frames = [*asked.begins(0, "", None), *asked.shows(0, says("I "), None)]
    assert frames
    assert shelf.get(asked.id) is None


def test_store_false_keeps_nothing():
    shelf = Store[Kept](10, 10**6).of(None)
    asked = reply(shelf, store=False)
    found = whole(asked, ANSWER, finished(ANSWER))
    assert found["store"] is False
    assert shelf.get(asked.id) is None


def test_where_nothing_can_be_kept_it_is_refused_only_if_it_was_asked_for():
    none = Store[Kept](0, 10**6).of(None)
    assert whole(reply(none), [says("x")], finished([]))["store"] is False
    with pytest.raises(ApiError) as error:
        reply(none, store=True)
    assert error.value.param == "store"


def test_items_of_stored_responses_can_be_referred_to():
    shelf = Store[Kept](10, 10**6).of("me")
    first = reply(shelf, input=[{"role": "user", "content": "One?"}])
    found = whole(first, ANSWER, finished(ANSWER))
    kept = shelf.get(first.id)
    assert kept is not None
    listed = json.loads(kept.items) + found["output"]
    refers = [{"type": "item_reference", "id": item["id"]} for item in listed]
    body = {"model": "fox", "input": [*refers, {"role": "user", "content": "And?"}]}
    ask, _ = Responses().parse(json.dumps(body).encode(), shelf)
    calls = (ToolCall("call_1", "look", '{"a":1}'), ToolCall("call_2", "look", "{}"))
    assert ask.prompt.messages == [
        Message("user", "One?"),
        Message("assistant", "I look.", calls, reasoning="Hmm."),
        Message("user", "And?"),
    ]
    others = Store[Kept](10, 10**6).of("you")
    with pytest.raises(ApiError, match="not found"):
        Responses().parse(json.dumps(body).encode(), others)
