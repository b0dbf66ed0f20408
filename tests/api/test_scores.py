"""Log probabilities over HTTP: of an answer's tokens, of a prompt's, and what they cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.api.test_metrics import Traffic
from tests.conftest import Server
from tests.thorough import first

Json = dict[str, Any]

PROMPT = "Question: What is the capital of Galicor?\nAnswer:"
ASK = [{"role": "user", "content": "Hi"}]
ROWS = ("text_offset", "tokens", "token_logprobs", "top_logprobs")
BOTH_USAGES = {"include_usage": True, "continuous_usage_stats": True}


def post(server: Server, route: str, **body: Any) -> Json:
    response = httpx.post(f"{server.url}/v1/{route}", json={"temperature": 0} | body, timeout=60)
    assert response.status_code == 200, response.text
    found: Json = response.json()
    return found


def stream(server: Server, route: str, **body: Any) -> list[Json]:
    body = {"temperature": 0, "stream": True} | body
    with httpx.stream("POST", f"{server.url}/v1/{route}", json=body, timeout=60) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def entries(choices: list[Json]) -> list[Any]:
    """Of each token all that is said."""
    found: list[Any] = []
    for choice in choices:
        logprobs = choice["logprobs"] or {}
        found += logprobs.get("content", [])
        found += zip(*(logprobs.get(row, []) for row in ROWS), strict=True)
    return found


def by_index(chunks: list[Json]) -> dict[int, list[Json]]:
    found: dict[int, list[Json]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            found.setdefault(choice["index"], []).append(choice)
    return found


# -- an answer's tokens --------------------------------------------------------------------------


def requests() -> Iterator[tuple[str, Json]]:
    for model in ("letters", "letters:base", "letters:aligned"):
        for most in (1, 2, 3, 5, 8, 11, 40):
            limits = {"model": model, "max_tokens": most}
            chat = {"messages": ASK, "logprobs": True, "top_logprobs": 2, "n": 1 + most % 2}
            yield "chat/completions", limits | chat
            yield "completions", limits | {"prompt": ["Hi", "Q: "], "logprobs": 2}
    for stop in ("é", " 漢", "字 o", "👍🏽"):
        yield "completions", {"model": "letters", "prompt": "Hi", "logprobs": 1, "stop": stop}
        chat = {"messages": ASK, "logprobs": True, "stop": [stop], "n": 2}
        yield "chat/completions", {"model": "letters:aligned", **chat}
    mixture = {"nudging": {"policy": "ensemble"}, "logprobs": True, "messages": ASK}
    yield "chat/completions", {"model": "letters", "max_tokens": 3, **mixture}
    yield "chat/completions", {"model": "letters", **mixture}


REQUESTS = list(requests())


@pytest.mark.parametrize(("route", "body"), REQUESTS)
def test_a_stream_and_a_whole_answer_say_the_same_of_the_same_tokens(
    scripted: Server, route: str, body: Json
):
    whole = post(scripted, route, **body)
    chunks = by_index(stream(scripted, route, **body))
    for choice in whole["choices"]:
        assert entries(chunks[choice["index"]]) == entries([choice])


@pytest.mark.parametrize(("route", "body"), REQUESTS)
def test_the_bytes_are_each_tokens_own_and_join_to_the_text(
    scripted: Server, route: str, body: Json
):
    answer = post(scripted, route, **body)
    count = 0
    for choice in answer["choices"]:
        found = entries([choice])
        if route == "completions":
            count += sum(token != "" for _, token, _, _ in found)  # the end of text is one without
            for _, token, _, top in found:
                assert token in top
        else:
            count += len(found)
            data = b"".join(bytes(entry["bytes"]) for entry in found)
            text = choice["message"]["content"]
            assert data.decode("utf-8", "ignore") == text or "stop" in body
            for number, entry in enumerate(found):
                # None is the end of text. The first may be the space that a prompt ended in.
                assert entry["bytes"] or not number
                assert entry["token"] == spelled(bytes(entry["bytes"]))
                for other in entry["top_logprobs"]:
                    assert other["token"] == spelled(bytes(other["bytes"]))
    if "stop" not in body:
        assert count == answer["usage"]["completion_tokens"]


def spelled(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@pytest.mark.parametrize("model", ["demo", "demo:base", "demo:aligned"])
@pytest.mark.parametrize("most", [4, 60])
def test_so_it_is_on_real_engines(live: Server, model: str, most: int):
    question = [{"role": "user", "content": "What is the capital of Galicor?"}]
    chat = {"messages": question, "logprobs": True, "top_logprobs": 3}
    for route, fields in (
        ("chat/completions", chat),
        ("completions", {"prompt": PROMPT, "logprobs": 3}),
    ):
        body = {"model": model, "max_tokens": most, **fields}
        choice = post(live, route, **body)["choices"][0]
        assert entries(by_index(stream(live, route, **body))[0]) == entries([choice])


# -- a prompt's tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["demo:base", "demo:aligned"])
def test_an_echoed_text_has_the_log_probabilities_with_which_it_was_written(
    live: Server, model: str
):
    """What lm-evaluation-harness asks for: teacher forcing."""
    fields = {"model": model, "logprobs": 2}
    written = post(live, "completions", prompt=PROMPT, max_tokens=24, **fields)["choices"][0]
    text, own = written["text"], written["logprobs"]
    own = (
        {row: own[row][: written["logprobs"]["tokens"].index("")] for row in ROWS}
        if ("" in own["tokens"])
        else own
    )
    for most in (0, 1):
        body = {"prompt": PROMPT + text, "echo": True, "max_tokens": most, **fields}
        answer = post(live, "completions", **body)
        choice = answer["choices"][0]
        read = choice["logprobs"]
        count = answer["usage"]["prompt_tokens"]
        assert all(len(read[row]) == count + most for row in ROWS)
        assert choice["finish_reason"] in ("length", "stop") if most else "length"
        assert "".join(read["tokens"]) == choice["text"]
        assert choice["text"].startswith(PROMPT + text)
        assert read["token_logprobs"][0] is read["top_logprobs"][0] is None
        for offset, token in zip(read["text_offset"], read["tokens"], strict=True):
            assert choice["text"][offset : offset + len(token)] == token
        again = slice(count - len(own["tokens"]), count)
        assert read["tokens"][again] == own["tokens"]
        assert read["token_logprobs"][again] == pytest.approx(own["token_logprobs"], abs=1e-3)
        for here, there in zip(read["top_logprobs"][again], own["top_logprobs"], strict=True):
            assert here == pytest.approx(there, abs=1e-3)
        # … which are the likeliest, as the harness looks for them.
        for logprob, top in zip(
            read["token_logprobs"][again], read["top_logprobs"][again], strict=True
        ):
            assert logprob == max(top.values())


@pytest.mark.parametrize("model", ["demo:base", "demo:aligned"])
def test_prompts_of_both_kinds_are_scored_alike_and_in_order(live: Server, model: str):
    texts = [PROMPT, "Once upon"]
    asked = {"model": model, "prompt": PROMPT}
    ids = [
        httpx.post(f"{live.url}/tokenize", json={**asked, "prompt": text}).json()["tokens"]
        for text in texts
    ]
    body = {"model": model, "echo": True, "logprobs": 1, "max_tokens": 1}
    alone = [post(live, "completions", prompt=text, **body)["choices"][0] for text in texts]
    for prompts in (texts, ids):
        found = post(live, "completions", prompt=prompts, n=2, **body)["choices"]
        assert [choice["index"] for choice in found] == [0, 1, 2, 3]
        for choice in found:
            one = alone[choice["index"] // 2]
            assert choice["logprobs"]["token_logprobs"] == pytest.approx(
                one["logprobs"]["token_logprobs"], abs=1e-3
            )
            assert choice["text"] == "".join(choice["logprobs"]["tokens"])


def test_a_prompt_that_leaves_room_for_one_token_is_scored(live: Server):
    body = {"model": "demo:base", "echo": True, "logprobs": 1}
    for most in (0, 1):
        answer = post(live, "completions", prompt=[70] * 2047, max_tokens=most, **body)
        scores = answer["choices"][0]["logprobs"]["token_logprobs"]
        assert len(scores) == 2047 + most
        assert all(score <= 0 for score in scores[1:])
        assert answer["choices"][0]["finish_reason"] == "length" or most


@pytest.mark.parametrize("most", [0, 1, 30])
def test_a_stream_of_an_echo_is_the_whole(scripted: Server, most: int):
    body = {"model": "letters:base", "n": 2, "max_tokens": most}
    texts: Json = {"prompt": ["Hi 😀", "Ho"]}
    for fields in (texts, texts | {"logprobs": 2}, {"prompt": [70, 71], "logprobs": 0}):
        whole = post(scripted, "completions", echo=True, **body, **fields)
        chunks = by_index(stream(scripted, "completions", echo=True, **body, **fields))
        for choice in whole["choices"]:
            found = chunks[choice["index"]]
            assert "".join(chunk["text"] for chunk in found) == choice["text"]
            assert entries(found) == entries([choice])
            assert found[-1]["finish_reason"] == choice["finish_reason"]


def test_a_prompt_is_echoed_without_an_answer(scripted: Server):
    traffic = Traffic(scripted)
    answer = post(
        scripted, "completions", model="fox:aligned", prompt="Hi you", echo=True, max_tokens=0
    )
    assert answer["choices"] == [
        {"index": 0, "text": "Hi you", "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"]["completion_tokens"] == 0
    read = answer["usage"]["prompt_tokens"]
    traffic.settles(read, "vllm:prompt_tokens_total", model_name="fox:aligned")


# -- what it cost --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["fox", *first(0, ["fox:base"]), "letters"])
@pytest.mark.parametrize("n", first(1, [1, 3]))
@pytest.mark.parametrize("stop", ["a ", *first(0, ["😀"]), "fox. S"])
def test_after_a_stop_string_a_stream_cost_what_a_whole_answer_does(
    scripted: Server, model: str, n: int, stop: str
):
    body = {"model": model, "messages": ASK, "stop": stop, "n": n}
    traffic = Traffic(scripted)
    whole = post(scripted, "chat/completions", **body)["usage"]
    chunks = stream(scripted, "chat/completions", stream_options=BOTH_USAGES, **body)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole
    if n == 1:
        assert chunks[-2]["usage"] == whole
    last = {c["choices"][0]["index"]: c["usage"] for c in chunks if c["choices"]}
    assert sum(usage["completion_tokens"] for usage in last.values()) == whole["completion_tokens"]
    name = {"model_name": model}
    both = 2 * whole["completion_tokens"]
    traffic.settles(both, "vllm:generation_tokens_total", **name)
    assert traffic.moved("vllm:prompt_tokens_total", **name) == 2 * whole["prompt_tokens"]
    if "nudging" in whole:
        steps = sum(usage["nudging"]["base_steps"] for usage in last.values())
        assert steps == whole["nudging"]["base_steps"]
        for speaker in ("base", "aligned"):
            wanted = 2 * whole["nudging"][f"{speaker}_steps"]
            assert traffic.moved("nudge_steps_total", **name, speaker=speaker) == wanted
        discarded = 2 * whole["nudging"]["discarded_tokens"]
        assert traffic.moved("nudge_discarded_tokens_total", **name) == discarded
