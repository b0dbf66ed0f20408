"""An answer as Anthropic's SDK reads it: whole, and from the events of a stream, the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from server.api import errors
from server.api.anthropic.render import MessageReply
from server.api.dialect import Written
from server.core import Finished, Piece, Rejected, StopReason, Usage
from server.decoding.parsing import CallArguments, CallBegins, Content, Part, Reasoning

Json = dict[str, Any]

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
USAGE = Usage(base_prompt_tokens=9, aligned_prompt_tokens=11, base_tokens=3, aligned_tokens=2)


def piece(text: str, rejected: str | None = None) -> Piece:
    return Piece(text, "base", 0.9, 1, None if rejected is None else Rejected(rejected, 0.1))


def said(text: str) -> Part:
    return Content(piece(text))


def thought(text: str) -> Part:
    return Reasoning(piece(text))


def called(number: int, name: str, *arguments: str) -> list[Part]:
    begun = CallBegins(number, f"toolu_{number}", name, piece(name))
    return [begun, *(CallArguments(number, piece(each)) for each in arguments)]


ALL = [
    thought("I had "),
    thought("better look."),
    said("Let me"),
    said(" see."),
    *called(0, "lookup", '{"entity": ', '"Parford"}'),
    *called(1, "now"),
    *called(2, "add", '{"a": 1, "b"', ": [2, null]}"),
    said("Soon."),
]


def frames(reply: MessageReply, parts: Sequence[Part], finished: Finished) -> bytes:
    sent = [*reply.begins(0, "", finished.usage)]
    for part in parts:
        sent += reply.shows(0, part, finished.usage)
    sent += reply.shows(0, finished, finished.usage)
    return b"".join([*sent, *reply.over(finished.usage)])


def events(sent: bytes) -> list[Json]:
    """As they were sent, each under its type's name."""
    found = []
    for frame in sent.decode().split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "error":
            EVENT.validate_python(event)
        found.append(event)
    return found


def whole(reply: MessageReply, parts: Sequence[Part], finished: Finished) -> Json:
    answer = reply.whole([Written(parts, finished)], finished.usage)
    Message.model_validate(answer)
    return answer


@cache
def sdk() -> anthropic.Anthropic:
    """It is answered with what stands in its request."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent = json.loads(request.content)["messages"][0]["content"]
        head = {"content-type": "text/event-stream"}
        return httpx2.Response(200, content=sent.encode(), headers=head)

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    return anthropic.Anthropic(
        api_key="none", base_url="http://test", max_retries=0, http_client=client
    )


def read(sent: bytes) -> Message:
    """What the SDK makes of a stream."""
    messages: Any = [{"role": "user", "content": sent.decode()}]
    with sdk().messages.stream(max_tokens=1, model="m", messages=messages) as stream:
        return stream.get_final_message()


def same(parts: Sequence[Part], finished: Finished, **how: Any) -> tuple[Json, Message]:
    reply = MessageReply("fox", **how)
    streamed = read(frames(reply, parts, finished))
    again = MessageReply("fox", **how)
    again.id = reply.id
    return whole(again, parts, finished), streamed


def test_blocks_follow_each_other_as_they_were_written():
    answer = whole(MessageReply("fox"), ALL, Finished("aligned_end", USAGE, calls=3))
    assert answer["content"] == [
        {"type": "thinking", "thinking": "I had better look.", "signature": "unsigned"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "toolu_0", "name": "lookup", "input": {"entity": "Parford"}},
        {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}},
        {"type": "tool_use", "id": "toolu_2", "name": "add", "input": {"a": 1, "b": [2, None]}},
        {"type": "text", "text": "Soon."},
    ]
    assert answer["role"] == "assistant"
    assert answer["type"] == "message"
    assert answer["model"] == "fox"


def test_a_stream_has_its_events_in_order():
    sent = events(frames(MessageReply("fox"), ALL, Finished("aligned_end", USAGE, calls=3)))
    kinds = [event["type"] for event in sent]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    opened: int | None = None
    last = -1
    for event in sent[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert opened is None
                opened = event["index"]
                assert opened == last + 1
                last = event["index"]
            case "content_block_delta":
                assert event["index"] == opened
            case "content_block_stop":
                assert event["index"] == opened
                opened = None
    assert last == 5
    signed = [event for event in sent if event.get("delta", {}).get("type") == "signature_delta"]
    assert [event["index"] for event in signed] == [0]


def test_a_stream_says_first_what_was_read():
    first, *_ = events(frames(MessageReply("fox"), [said("x")], Finished("aligned_end", USAGE)))
    message = first["message"]
    assert message["usage"]["input_tokens"] == 9
    assert message["usage"]["output_tokens"] == 0
    assert message["content"] == []
    assert message["stop_reason"] is None


parts = st.lists(
    st.one_of(
        st.text(max_size=4).map(lambda text: [said(text)]),
        st.text(max_size=4).map(lambda text: [thought(text)]),
        st.tuples(
            st.sampled_from(["add", "look_up"]),
            st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3) | st.integers()),
            st.integers(0, 20),
        ),
    ),
    max_size=6,
)


def laid_out(drawn: Sequence[Any]) -> list[Part]:
    found: list[Part] = []
    number = 0
    for each in drawn:
        if isinstance(each, list):
            found += each
            continue
        name, arguments, at = each
        text = "" if arguments is None else json.dumps(arguments)
        found += called(number, name, text[:at], text[at:])
        number += 1
    return found


@given(drawn=parts, trace=st.booleans(), silent=st.booleans(), cut=st.booleans())
def test_a_stream_joins_to_the_whole(drawn: Sequence[Any], trace: bool, silent: bool, cut: bool):
    laid = laid_out(drawn)
    finished = Finished("length" if cut else "aligned_end", USAGE, reasoning_tokens=1)
    answer, streamed = same(laid, finished, trace=trace, silent=silent)
    read_back = streamed.to_dict()
    for got, expected in zip(read_back["content"], answer["content"], strict=True):
        assert {key: got[key] for key in expected} == expected
    for key in ("id", "model", "role", "stop_reason", "stop_sequence"):
        assert read_back[key] == answer[key]
    counted = {key: value for key, value in answer["usage"].items() if key != "nudging"}
    assert {key: read_back["usage"][key] for key in counted} == counted


@given(drawn=parts)
def test_a_trace_has_every_piece_once_in_either(drawn: Sequence[Any]):
    laid = laid_out(drawn)
    finished = Finished("aligned_end", USAGE, rejected=Rejected("!", 0.2))
    answer = whole(MessageReply("fox", trace=True), laid, finished)
    sent = events(frames(MessageReply("fox", trace=True), laid, finished))
    told = [each for event in sent for each in event.get("nudging", {}).get("pieces", ())]
    assert told == answer["nudging"]["pieces"]
    assert len(told) == len([part for part in laid if not part.piece.only_tokens])
    outcome = {key: value for key, value in answer["nudging"].items() if key != "pieces"}
    assert outcome == {"stop_reason": "aligned_end", "rounds": 0} | {
        "rejected": {"text": "!", "top_prob": 0.2}
    }
    assert sent[-2]["nudging"].items() >= outcome.items()


def test_a_trace_comes_with_its_text():
    finished = Finished("aligned_end", USAGE)
    sent = events(frames(MessageReply("fox", trace=True), [said("a"), said("b")], finished))
    deltas = [event for event in sent if event["type"] == "content_block_delta"]
    assert [[p["text"] for p in e["nudging"]["pieces"]] for e in deltas] == [["a"], ["b"]]
    assert sent[-2]["nudging"]["pieces"] == []


def test_nobody_who_did_not_ask_gets_a_trace():
    finished = Finished("aligned_end", USAGE)
    assert "nudging" not in whole(MessageReply("fox"), ALL, finished)
    assert not [e for e in events(frames(MessageReply("fox"), ALL, finished)) if "nudging" in e]


def test_arguments_that_max_tokens_cut_are_as_far_as_they_came():
    laid = called(0, "add", '{"a": 1, "b": "tw')
    answer, streamed = same(laid, Finished("length", USAGE))
    assert answer["content"][0]["input"] == {"a": 1}
    assert streamed.content[0].input == {"a": 1}
    assert answer["stop_reason"] == "max_tokens"


def test_an_empty_answer_has_no_blocks():
    answer, streamed = same([said("")], Finished("aligned_end", USAGE))
    assert answer["content"] == streamed.content == []


def test_thoughts_that_are_not_to_be_shown_are_not():
    answer, streamed = same(ALL, Finished("aligned_end", USAGE), silent=True)
    first = answer["content"][0]
    assert first == {"type": "thinking", "thinking": "", "signature": "unsigned"}
    assert streamed.content[0].thinking == ""


@pytest.mark.parametrize(
    ("finished", "reason", "matched"),
    [
        (Finished("aligned_end", USAGE), "end_turn", None),
        (Finished("end_of_text", USAGE), "end_turn", None),
        (Finished("aligned_end", USAGE, calls=1), "tool_use", None),
        (Finished("length", USAGE, calls=1), "max_tokens", None),
        (Finished("max_rounds", USAGE), "max_tokens", None),
        (Finished("context", USAGE), "model_context_window_exceeded", None),
        (Finished("stop_string", USAGE, matched="END"), "stop_sequence", "END"),
        (Finished("stop_string", USAGE, matched="</s>"), "end_turn", None),
    ],
)
def test_it_says_why_it_ended(finished: Finished, reason: StopReason, matched: str | None):
    answer, streamed = same([said("x")], finished, stops=["END"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, matched)
    assert (streamed.stop_reason, streamed.stop_sequence) == (reason, matched)


def test_usage_counts_thoughts_and_says_what_the_nudging_cost():
    usage = whole(MessageReply("fox"), ALL, Finished("aligned_end", USAGE, reasoning_tokens=4))[
        "usage"
    ]
    assert usage["input_tokens"] == 9
    assert usage["output_tokens"] == 5
    assert usage["output_tokens_details"] == {"thinking_tokens": 4}
    assert usage["nudging"]["nudged_tokens"] == 2
    alone = Usage(aligned_prompt_tokens=11, aligned_tokens=2)
    assert "nudging" not in whole(MessageReply("fox"), [], Finished("aligned_end", alone))["usage"]


def test_a_stream_that_fails_says_so_in_the_sdks_terms():
    reply = MessageReply("fox")
    begun = b"".join([*reply.begins(0, "", USAGE), *reply.shows(0, said("x"), USAGE)])
    failed = b"".join(reply.failed(errors.shutting_down()))
    assert events(failed)[0]["error"]["type"] == "overloaded_error"
    with pytest.raises(anthropic.APIStatusError, match="shutting down") as caught:
        read(begun + failed)
    assert caught.value.type == "overloaded_error"
