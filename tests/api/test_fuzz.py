"""Hundreds of bodies that nobody should send: no 5xx, always the error shape, and the server lives.

Each is a good body with something done to it, to its values or to its bytes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import REPEATABLE, Server
from tests.thorough import first

Json = dict[str, Any]

ASK = [{"role": "user", "content": "Hi"}]
CHAT = {
    "model": "fox",
    "messages": [{"role": "system", "content": "Be brief."}, *ASK],
    "max_tokens": 2,
    "temperature": 0.5,
    "stop": ["x", "y"],
    "logit_bias": {"5": 1.5},
    "stream_options": {"include_usage": True},
    "stream": True,
    "response_format": {"type": "text"},
    "nudging": {"gamma": 0.4, "trace": True},
    "chat_template_kwargs": {"a": 1},
}
PREFILL = {
    "model": "fox:aligned",
    "messages": [*ASK, {"role": "assistant", "content": [{"type": "text", "text": "Once "}]}],
    "continue_final_message": True,
    "max_completion_tokens": 2,
    "logprobs": True,
    "top_logprobs": 2,
    "seed": 7,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"anyOf": [{"enum": ["x", 1]}, {"$ref": "#/$defs/b"}]},
        "c": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$"}, "minItems": 1},
    },
    "required": ["a"],
    "$defs": {"b": {"type": "integer", "maximum": 9}},
}
CALLED = {"name": "f", "arguments": '{"a": [1, {"b": null}]}'}
TOOLS = {
    "model": "fox",
    "messages": [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "reasoning": "Hm.",
            "tool_calls": [{"id": "1", "type": "function", "function": CALLED}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ],
    "max_tokens": 2,
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": SCHEMA, "strict": False}},
        {"type": "function", "function": {"name": "g", "description": "x"}},
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "reasoning_effort": "none",
}
OLDER = {
    "model": "cross",
    "messages": [
        *ASK,
        {"role": "assistant", "content": "x", "function_call": CALLED},
        {"role": "function", "name": "f", "content": "x"},
    ],
    "max_tokens": 2,
    "functions": [{"name": "f", "parameters": SCHEMA}],
    "function_call": "auto",
    "include_reasoning": False,
}
TALK = [
    {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"ttl": "1h"}}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": ["me", 1.5, None]}},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "t1",
                "is_error": True,
                "content": [{"type": "text", "text": "none"}],
            },
            {"type": "text", "text": "Go on."},
        ],
    },
]
LOOK = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
AGENT = {
    "model": "toolless",
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": TALK,
    "tools": [LOOK, {"type": "custom", "name": "add", "input_schema": {}, "strict": True}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
}
GOOD: dict[str, list[Json]] = {
    "/v1/messages": [
        AGENT | {"max_tokens": 2, "stream": True, "metadata": {"user_id": "u"}, "top_k": 3},
        AGENT | {"model": "fox", "max_tokens": 2},
        {"model": "fox:aligned", "max_tokens": 2, "messages": ASK, "stop_sequences": ["x"]},
        {
            "model": "fox",
            "max_tokens": 2,
            "system": "Be brief.",
            "messages": [*ASK, {"role": "assistant", "content": "Once "}],
            "nudging": {"gamma": 0.4, "trace": True},
            "temperature": 0.5,
        },
    ],
    "/v1/messages/count_tokens": [AGENT],
    "/v1/chat/completions": [CHAT, PREFILL, TOOLS, OLDER],
    "/v1/completions": [
        {"model": "fox:base", "prompt": [5, 6], "max_tokens": 2, "logprobs": 1, "top_k": 3},
        {"model": "fox", "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "n": 1},
        {"model": "fox:aligned", "prompt": "a b", "max_tokens": 0, "echo": True, "logprobs": 2},
    ],
    "/tokenize": [
        {"model": "fox", "prompt": "Hi", "add_special_tokens": False, "return_token_strs": True},
        {"model": "cross:aligned", "messages": ASK, "add_generation_prompt": False},
    ],
    "/detokenize": [{"model": "cross:aligned", "tokens": [5, 6, 1023]}],
    "/apply-template": [{"model": "fox", "messages": ASK, "chat_template_kwargs": {"tools": []}}],
    "/v1/responses": [
        {
            "model": "fox",
            "input": "Hi",
            "instructions": "Be brief.",
            "max_output_tokens": 2,
            "stream": True,
            "stream_options": {"include_obfuscation": False},
            "metadata": {"a": "b"},
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "nudging": {"trace": True},
        },
        {
            "model": "fox:aligned",
            "input": [
                {"role": "developer", "content": "Be brief."},
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_text", "text": "Hi"}],
                },
                {"type": "reasoning", "id": "rs_1", "summary": [], "content": None},
                {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "blue"},
            ],
            "max_output_tokens": 2,
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
            "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}}],
            "tool_choice": "none",
            "reasoning": {"effort": None, "summary": "auto"},
            "store": False,
        },
        {
            "model": "fox",
            "input": "Hi",
            "max_output_tokens": 2,
            "tools": [
                {
                    "type": "function",
                    "name": "look",
                    "description": "Look.",
                    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
                    "strict": True,
                }
            ],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "look"}],
            },
            "parallel_tool_calls": False,
            "reasoning": {"effort": "none"},
            "stream": True,
        },
    ],
}
FIELDS = sorted(
    {field for bodies in GOOD.values() for body in bodies for field in body}
    | {"top_p", "min_p", "best_of", "min_tokens", "ignore_eos", "suffix"}
    | {"frequency_penalty", "repetition_penalty", "stop_token_ids", "chat_template", "echo"}
)
KWARGS = ("documents", "tools", "bos_token", "messages", "self", "padding", "return_dict")
"""Names that mean something where chat templates are rendered."""


def deep(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"type": value}
    return value


ODD_TEXT = ("", "\x00", "\u2028", "\ud7ff\ue000", "\U0010ffff" * 3, "\uf5d00\uf5d1", "é\u0301" * 9)
odd = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1.5, 1e308, 2**31, -(2**63), 10**40, "1", [], {}]),
    st.sampled_from(ODD_TEXT),
    st.sampled_from(["<|im_end|>", "{{ 7 * 7 }}", "{% raw %}", "x" * 20_000, "json_schema"]),
    st.text(max_size=20),
    st.lists(st.integers() | st.text(max_size=3), max_size=4),
    st.dictionaries(st.text(max_size=3) | st.sampled_from(KWARGS), st.none() | st.integers()),
    st.sampled_from([3, 60, 150]).map(deep),
    st.just({"x" * 20_000: 1}),
).map(copy.deepcopy)  # a body is changed in place


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if _is_list(node) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def _is_list(node: Any) -> bool:
    return isinstance(node, list)


@st.composite
def changed(draw: st.DrawFn, body: Json) -> Any:
    """A body with values of other types, more fields or fewer."""
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from([path for path in places(body) if path]))
        parent: Any = body
        for step in path:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "replace", "remove", "wrap", "add"])):
            case "replace":
                parent[last] = draw(odd)
            case "remove":
                del parent[last]
            case "wrap":
                parent[last] = [parent[last]]
            case "add":
                body[draw(st.sampled_from(FIELDS))] = draw(odd)
        if not body:
            break
    return body


@st.composite
def bodies(draw: st.DrawFn, path: str) -> bytes:
    """What is sent: a changed body, perhaps with damage to its bytes."""
    value = draw(changed(draw(st.sampled_from(GOOD[path]))))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    data = text.encode("utf-8", "surrogatepass")
    at = draw(st.integers(0, len(data)))
    match draw(st.sampled_from(["as it is"] * 5 + ["cut", "insert", "flip", "twice", "deep"])):
        case "cut":
            return data[:at]
        case "insert":
            odd_bytes = [b"NaN", b"-Infinity", b"1e999", b"\xff", b"\x00", b"\\ud800", b"\\u", b'"']
            return data[:at] + draw(st.sampled_from(odd_bytes)) + data[at:]
        case "flip":
            return data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :]
        case "twice":
            field = json.dumps(draw(st.sampled_from(FIELDS))).encode()
            again = field + b":" + json.dumps(draw(odd)).encode()
            return data[:-1] + (b"," if value else b"") + again + b"}"
        case "deep":
            return data[:-1] + b',"messages":' + b"[" * 5_000 + b"]" * 5_000 + b"}"
    return data


LAW = settings(REPEATABLE, max_examples=100)
ENDS = ("data: [DONE]", "event: response.completed", "event: response.incomplete")
MORE = {path: settings(REPEATABLE, max_examples=500) for path in ("/v1/responses", "/v1/messages")}
"""Where it is another number of examples."""


def check_anthropic_error(response: httpx.Response) -> None:
    body = response.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["error"].keys() == {"type", "message", "details"}
    assert body["error"]["type"] in ("invalid_request_error", "not_found_error")
    assert 0 < len(body["error"]["message"]) < 500
    param = body["error"]["details"]["param"]
    assert param is None or 0 < len(param) < 200
    assert response.headers["request-id"] == body["request_id"]


def check_error(response: httpx.Response) -> None:
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 500
    assert error["param"] is None or 0 < len(error["param"]) < 200
    assert response.headers["x-request-id"]


def chosen() -> list[bytes]:
    """Bodies that must be among them: lone surrogates, NaN, keys twice, a BOM, endless keys."""
    model = b'{"model": "fox", "max_tokens": 2, '
    rest = b'"messages": [{"role": "user", "content": "\\ud800"}], "prompt": "\\udfff", '
    endless = b'{"' + b"x" * 20_000 + b'": 1}'
    message = b'"messages": [{"role": "user", "content": "x"}], "prompt": "x", '
    return [
        model + rest + b'"tokens": [5]}',
        model + b'"temperature": NaN, "tokens": [Infinity], "prompt": "x"}',
        b'{"model": "nobody", "model": "fox", "max_tokens": 2, "prompt": "x", "tokens": [5], '
        b'"messages": [{"role": "user", "content": "x"}]}',
        b"\xef\xbb\xbf" + model + b'"prompt": "x"}',
        model + message + b'"tokens": [5], "nudging": ' + endless + b"}",
        model + message + b'"tokens": [5], "logit_bias": ' + endless + b"}",
        model + message + b'"tokens": [5], "chat_template_kwargs": ' + endless + b"}",
    ]


@pytest.mark.parametrize("path", first(3, GOOD))
def test_no_body_fails_the_server(scripted: Server, path: str):
    with httpx.Client(base_url=scripted.url, timeout=30) as client:

        def post(body: bytes) -> httpx.Response:
            headers = {"Content-Type": "application/json"}
            return client.post(path, content=body, headers=headers)

        def law(body: bytes) -> None:
            response = post(body)
            assert response.status_code in (200, 400, 404, 413), (body[:500], response.text[:500])
            if response.status_code != 200:
                (check_anthropic_error if "messages" in path else check_error)(response)
            elif response.headers["content-type"].startswith("text/event-stream"):
                if "messages" in path:
                    assert response.text.endswith('data: {"type":"message_stop"}\n\n')
                    assert "event: error" not in response.text
                    return
                last = response.text.removesuffix("\n\n").rpartition("\n\n")[2]
                assert last.startswith(ENDS)
                assert 'data: {"error"' not in response.text
                assert "event: error" not in response.text
            else:
                response.json()

        for body in chosen():
            law(body)
        MORE.get(path, LAW)(given(bodies(path))(law))()

        for good in GOOD[path]:
            assert post(json.dumps(good).encode()).status_code == 200
