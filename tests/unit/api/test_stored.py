"""The form of a stored trace: what is read, what is refused, and with which words."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from server.api.traces import StoredTrace
from server.cli import app

Json = dict[str, Any]

TRACE: Json = {
    "format": "nudge-trace",
    "version": 1,
    "created": 1795256591,
    "server": "nudge-0.1.0",
    "request": {
        "model": "demo",
        "messages": [{"role": "user", "content": "Who?"}],
        "temperature": 0,
        "max_tokens": 50,
    },
    "nudging": {
        "gamma": 0.4,
        "entropy": 2.0,
        "policy": "nudging",
        "start": "aligned",
        "end_lookahead": 0,
        "end_check": "newline",
        "max_rounds": 150,
    },
    "answer": {
        "text": "Sure! The dog.",
        "finish_reason": "stop",
        "stop_reason": "aligned_end",
        "rounds": 2,
        "pieces": [
            {"text": "Sure!", "speaker": "aligned", "top_prob": 0.9},
            {"text": " The", "speaker": "base", "top_prob": 0.8},
            {
                "text": " dog.",
                "speaker": "aligned",
                "top_prob": 0.7,
                "rejected": {"text": " \u001b[31mcow", "top_prob": 0.2},
            },
        ],
        "rejected": {"text": "", "top_prob": 0.95},
    },
    "usage": {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
        "nudging": {
            "nudged_tokens": 3,
            "base_tokens": 1,
            "rounds": 2,
            "nudged_share": 0.75,
            "aligned_prompt_tokens": 9,
            "base_steps": 4,
            "aligned_steps": 5,
            "discarded_tokens": 5,
        },
    },
}


def changed(change: Callable[[Json], object]) -> Json:
    trace = copy.deepcopy(TRACE)
    change(trace)
    return trace


def test_what_is_read_is_what_is_written():
    assert StoredTrace.model_validate(TRACE).stored() == TRACE


def test_a_trace_of_before_the_cache_was_told_is_read():
    old = changed(lambda trace: trace["usage"].pop("prompt_tokens_details"))
    assert StoredTrace.model_validate(old).stored() == old


def test_an_answer_of_one_model_is_a_trace_too():
    alone = changed(lambda trace: trace.update(nudging=None))
    trace = StoredTrace.model_validate(alone)
    assert trace.stored()["nudging"] is None
    assert "alone" in (trace.not_comparable or "")


def test_a_base_model_may_have_given_way_though_it_was_sure():
    StoredTrace.model_validate(
        changed(lambda trace: trace["answer"]["pieces"][2]["rejected"].update(top_prob=0.9))
    )


def test_a_call_is_stored_as_the_pieces_that_it_has():
    settings = StoredTrace.model_validate(TRACE).nudging
    assert settings is not None
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    pieces = [
        {"text": "f", "speaker": "aligned", "top_prob": 0.9},
        {"text": "{}", "speaker": "base", "top_prob": 0.1},  # the grammar's p1 was higher
    ]
    choice = {
        "message": {"role": "assistant", "content": None, "tool_calls": [call]},
        "finish_reason": "tool_calls",
        "nudging": {"pieces": pieces, "stop_reason": "aligned_end", "rounds": 1},
    }
    response = {"created": 1, "system_fingerprint": "x", "usage": TRACE["usage"]}
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = TRACE["request"] | {"tools": tools}
    trace = StoredTrace.of(request, settings, response | {"choices": [choice]})
    assert trace.answer.text == "f{}"
    (part,) = trace.stored()["answer"]["parts"]
    assert part == {"type": "call", "id": "1", "name": "f", "arguments": "{}"}
    assert trace.answer.finish_reason == "tool_calls"
    assert not trace.exact


@pytest.mark.parametrize("said", ["She is.", None])
def test_thoughts_and_what_is_said_are_told_apart(said: str | None):
    settings = StoredTrace.model_validate(TRACE).nudging
    assert settings is not None
    call = {"name": "f", "arguments": "{}"}
    message = {"role": "assistant", "reasoning": "Hm.", "content": said, "function_call": call}
    pieces = [
        {"text": text, "speaker": "aligned", "top_prob": 0.9}
        for text in ("Hm.", said or "", "f", "{}")
    ]
    choice = {
        "message": message,
        "finish_reason": "function_call",
        "nudging": {"pieces": pieces, "stop_reason": "aligned_end", "rounds": 1},
    }
    response = {"created": 1, "system_fingerprint": "x", "usage": TRACE["usage"]}
    trace = StoredTrace.of(TRACE["request"], settings, response | {"choices": [choice]})
    parts = trace.stored()["answer"]["parts"]
    assert parts == [
        {"type": "reasoning", "text": "Hm."},
        *([{"type": "content", "text": said}] if said else []),
        {"type": "call", "name": "f", "arguments": "{}"},
    ]


def test_keys_of_a_later_server_are_passed_over():
    StoredTrace.model_validate(changed(lambda trace: trace["answer"].update(later=1)))


DAMAGED: dict[str, tuple[Callable[[Json], object], str]] = {
    "another format": (lambda t: t.update(format="chat"), "nudge-trace 1"),
    "another version": (lambda t: t.update(version=2), "nudge-trace 1"),
    "no model": (lambda t: t["request"].pop("model"), "model"),
    "a field that isn't served": (
        lambda t: t["request"].update(tools=[{"type": "function"}], suffix="x"),
        "suffix",
    ),
    "its own nudging": (lambda t: t["request"].update(nudging={}), "'nudging' has no place"),
    "a stream": (lambda t: t["request"].update(stream=True), "'stream' has no place"),
    "two answers": (lambda t: t["request"].update(n=2), "one answer"),
    "gamma as text": (lambda t: t["nudging"].update(gamma="0.4"), "nudging.gamma"),
    "gamma under 0": (lambda t: t["nudging"].update(gamma=-1), "nudging.gamma"),
    "other parts": (
        lambda t: t["answer"].update(parts=[{"type": "content", "text": "Sure! The"}]),
        "answer.parts don't join",
    ),
    "another kind of part": (
        lambda t: t["answer"].update(parts=[{"type": "picture", "text": "Sure! The dog."}]),
        "answer.parts.0",
    ),
    "another text": (lambda t: t["answer"].update(text="Sure!"), "don't join"),
    "no speaker": (lambda t: t["answer"]["pieces"][1].pop("speaker"), "answer.pieces.1.speaker"),
    "another speaker": (
        lambda t: t["answer"]["pieces"][1].update(speaker="me"),
        "answer.pieces.1.speaker",
    ),
    "p1 over 1": (lambda t: t["answer"]["pieces"][1].update(top_prob=1.5), "pieces.1.top_prob"),
    "a base token under gamma": (
        lambda t: t["answer"]["pieces"][1].update(top_prob=0.3),
        "answer.pieces.1: the base model wrote it",
    ),
    "one model's usage": (lambda t: t["usage"].pop("nudging"), "usage.nudging is missing"),
    "no usage": (lambda t: t.pop("usage"), "usage"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_trace_is_one_message_that_names_the_place(tmp_path: Path, name: str):
    change, said = DAMAGED[name]
    with pytest.raises(ValidationError):
        StoredTrace.model_validate(changed(change))
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(changed(change)))
    result = CliRunner().invoke(app, ["replay", str(path), "--gamma", "0.5"])
    assert result.exit_code == 2
    assert result.stdout == ""
    (message,) = result.stderr.splitlines()
    assert said in message
    assert "trace.json can't be read as a trace" in message


def test_only_greedy_answers_by_plain_probabilities_must_repeat():
    assert StoredTrace.model_validate(TRACE).exact
    for field, value in (
        ("temperature", 0.7),
        ("presence_penalty", 1),
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_object"}),
    ):
        trace = changed(
            lambda trace, field=field, value=value: trace["request"].update({field: value})
        )
        assert not StoredTrace.model_validate(trace).exact, field
    unset = changed(lambda trace: trace["request"].pop("temperature"))
    assert not StoredTrace.model_validate(unset).exact
    neutral = changed(lambda trace: trace["request"].update(repetition_penalty=1.0, top_p=0.9))
    assert StoredTrace.model_validate(neutral).exact
