"""What ``/metrics`` shows of known traffic, on slow scripted engines."""

from __future__ import annotations

import importlib
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.telemetry import metrics
from tests.conftest import ROOT, Server, serve

QUESTION = [{"role": "user", "content": "Hi"}]

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: Server) -> Samples:
    text = httpx.get(f"{server.url}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class Traffic:
    """How the counts of a server moved since."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = scrape(server)

    def moved(self, name: str, **labels: str) -> float:
        """The sum over the series that have these labels; they must exist."""
        after = scrape(self._server)
        found = {key for key in after if key[0] == name and labels.items() <= dict(key[1]).items()}
        assert found, f"{name} {labels} is not shown"
        return sum(after[key] - self._before.get(key, 0.0) for key in found)

    def settles(self, expected: float, name: str, **labels: str) -> None:
        """A count is taken when the request is over, which its client may see first."""
        deadline = time.monotonic() + 5
        while self.moved(name, **labels) != expected and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.moved(name, **labels) == expected, (name, labels)


@pytest.fixture
def traffic(scripted: Server) -> Traffic:
    return Traffic(scripted)


@pytest.fixture(scope="module")
def client(scripted: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    return client.chat.completions.create(model=model, messages=QUESTION, temperature=0, **fields)


@pytest.mark.parametrize("stream", [False, True])
def test_the_counts_of_an_answer_are_its_usage(
    client: openai.OpenAI, traffic: Traffic, stream: bool
):
    if stream:
        chunks = list(ask(client, "fox", stream=True, stream_options={"include_usage": True}))
        usage = chunks[-1].usage
    else:
        usage = ask(client, "fox").usage
    nudging = usage.model_extra["nudging"]
    assert nudging["rounds"] > 1

    fox = {"model_name": "fox"}
    traffic.settles(1, "vllm:request_success_total", **fox, finished_reason="stop")
    assert traffic.moved("vllm:request_success_total") == 1
    chat = {"route": "/v1/chat/completions", "method": "POST"}
    assert traffic.moved("nudge_http_responses_total", **chat) == 1
    assert traffic.moved("nudge_http_responses_total", **chat, status="200") == 1
    assert traffic.moved("vllm:prompt_tokens_total", **fox) == usage.prompt_tokens
    assert traffic.moved("vllm:generation_tokens_total", **fox) == usage.completion_tokens
    assert traffic.moved("nudge_rounds_total", **fox) == nudging["rounds"]
    assert traffic.moved("nudge_discarded_tokens_total", **fox) == nudging["discarded_tokens"]
    for speaker, tokens in (("base", "base_tokens"), ("aligned", "nudged_tokens")):
        of = fox | {"speaker": speaker}
        assert traffic.moved("nudge_tokens_total", **of) == nudging[tokens]
        assert traffic.moved("nudge_steps_total", **of) == nudging[f"{speaker}_steps"]
    assert traffic.moved("vllm:generation_tokens_total") == usage.completion_tokens  # no others'


def test_the_latencies_of_an_answer_are_those_of_its_pieces(
    client: openai.OpenAI, traffic: Traffic
):
    began = time.monotonic()
    chunks = list(ask(client, "fox", stream=True, extra_body={"nudging": {"trace": True}}))
    took = time.monotonic() - began
    traced = [chunk.choices[0].model_extra.get("nudging", {}) for chunk in chunks]
    pieces = [piece for each in traced for piece in each.get("pieces", [])]
    base = [piece for piece in pieces if piece["speaker"] == "base"]
    fox = {"model_name": "fox"}
    traffic.settles(1, "vllm:e2e_request_latency_seconds_count", **fox)
    first = traffic.moved("vllm:time_to_first_token_seconds_sum", **fox)
    gaps = traffic.moved("vllm:inter_token_latency_seconds_sum", **fox)
    whole = traffic.moved("vllm:e2e_request_latency_seconds_sum", **fox)
    assert traffic.moved("vllm:time_to_first_token_seconds_count", **fox) == 1
    assert traffic.moved("vllm:inter_token_latency_seconds_count", **fox) == len(pieces) - 1
    # Steps of 20 ms: the first piece takes at least one, the whole at least as many as tokens.
    assert 0.02 <= first < whole / 2
    assert first + gaps <= whole < took
    assert gaps > 0.02 * (len(base) - 1)

    taken = fox | {"taken": "yes"}
    assert traffic.moved("nudge_base_top_prob_count", **taken) == len(base)
    assert traffic.moved("nudge_base_top_prob_sum", **taken) == pytest.approx(
        sum(piece["top_prob"] for piece in base)
    )
    # The script's p1 are 0.9, and 0.1 where the aligned model is asked.
    assert traffic.moved("nudge_base_top_prob_bucket", **taken, le="0.8") == 0
    assert traffic.moved("nudge_base_top_prob_bucket", **taken, le="0.9") == len(base)
    rejected = [piece["rejected"]["top_prob"] for piece in pieces if "rejected" in piece]
    not_taken = fox | {"taken": "no"}
    assert rejected
    assert traffic.moved("nudge_base_top_prob_sum", **not_taken) == pytest.approx(sum(rejected))
    assert traffic.moved("nudge_base_top_prob_count", **not_taken) == len(rejected)


def test_the_authors_procedure_has_no_probabilities_to_show(
    client: openai.OpenAI, traffic: Traffic
):
    reference = {"nudging": {"policy": "reference"}}
    ask(client, "fox", max_tokens=20, extra_body=reference)
    fox = {"model_name": "fox"}
    traffic.settles(1, "vllm:e2e_request_latency_seconds_count", **fox)
    assert traffic.moved("nudge_tokens_total", **fox, speaker="base") > 0
    assert traffic.moved("nudge_base_top_prob_count", **fox) == 0


def test_several_answers_to_one_prompt_read_it_once(client: openai.OpenAI, traffic: Traffic):
    usage = ask(client, "fox:base", n=3, max_tokens=4).usage
    of = {"model_name": "fox:base"}
    traffic.settles(3, "vllm:request_success_total", **of, finished_reason="length")
    assert usage.completion_tokens == 12
    assert traffic.moved("vllm:prompt_tokens_total", **of) == usage.prompt_tokens
    assert traffic.moved("nudge_tokens_total", **of, speaker="base") == 12
    assert traffic.moved("vllm:e2e_request_latency_seconds_count", **of) == 3
    assert traffic.moved("vllm:inter_token_latency_seconds_count", **of) == 9
    chat = {"route": "/v1/chat/completions", "method": "POST"}
    assert traffic.moved("nudge_http_responses_total", **chat, status="200") == 1


def gauges(server: Server) -> dict[str, float]:
    return {
        state: sum(
            value
            for (name, _), value in scrape(server).items()
            if name == f"vllm:num_requests_{state}"
        )
        for state in ("running", "waiting")
    }


def become(server: Server, **expected: float) -> None:
    deadline = time.monotonic() + 10
    while gauges(server) != expected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gauges(server) == expected


@contextmanager
def left_waiting(url: str, body: Any) -> Iterator[None]:
    """A request whose client asks, waits, and leaves without an answer."""
    request = httpx.Request("POST", url, json=body)
    host, port = request.url.host, request.url.port
    assert port is not None
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((host, port)) as connection:
        connection.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode())
        connection.sendall(request.content)
        yield


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_a_499_and_an_abort(
    scripted: Server, traffic: Traffic, stream: bool
):
    body = {"model": "endless", "messages": QUESTION, "stream": stream, "temperature": 0, "n": 2}
    url = f"{scripted.url}/v1/chat/completions"
    if stream:
        with httpx.stream("POST", url, json=body) as response:
            lines = response.iter_lines()  # kept: it closes the response when it goes
            next(lines)
            assert gauges(scripted) == {"running": 2, "waiting": 0}
    else:
        with left_waiting(url, body):
            become(scripted, running=2, waiting=0)
            time.sleep(0.1)  # a few steps
    endless = {"model_name": "endless"}
    traffic.settles(2, "vllm:request_success_total", **endless, finished_reason="abort")
    assert gauges(scripted) == {"running": 0, "waiting": 0}
    chat = {"route": "/v1/chat/completions", "method": "POST"}
    assert traffic.moved("nudge_http_responses_total", **chat, status="499") == 1
    assert traffic.moved("nudge_http_responses_total", **chat, status="200") == 0
    # What was written for nobody was written all the same; but it didn't end.
    assert traffic.moved("vllm:generation_tokens_total", **endless) > 0
    assert traffic.moved("vllm:e2e_request_latency_seconds_count", **endless) == 0


def test_answers_that_wait_are_shown_and_were_not_begun():
    server = serve(
        "--config", str(ROOT / "tests" / "scripted.yaml"), env={"NUDGE_SERVER__MAX_RUNNING": "2"}
    )
    try:
        traffic = Traffic(server)
        url = f"{server.url}/v1/chat/completions"
        body = {"messages": QUESTION, "temperature": 0, "stream": True, "n": 2}
        with httpx.stream("POST", url, json=body | {"model": "endless"}) as response:
            lines = response.iter_lines()  # kept: it closes the response when it goes
            next(lines)
            with left_waiting(url, body | {"model": "fox"}):
                become(server, running=2, waiting=2)
            fox = {"model_name": "fox"}
            traffic.settles(2, "vllm:request_success_total", **fox, finished_reason="abort")
            assert gauges(server) == {"running": 2, "waiting": 0}
            assert traffic.moved("vllm:prompt_tokens_total", **fox) == 0
        traffic.settles(4, "vllm:request_success_total", finished_reason="abort")
        assert gauges(server) == {"running": 0, "waiting": 0}
        assert traffic.moved("vllm:prompt_tokens_total", model_name="endless") > 0
    finally:
        server.stop()


def test_a_failure_is_counted_by_its_status_and_as_an_error(scripted: Server, traffic: Traffic):
    url = f"{scripted.url}/v1/chat/completions"
    dead = {"model": "dead:aligned", "messages": QUESTION}
    assert httpx.post(url, json=dead).status_code == 503
    assert httpx.post(url, json={"model": "fox", "messages": []}).status_code == 400
    assert httpx.post(url, json={"model": "nobody", "messages": QUESTION}).status_code == 404
    with httpx.stream("POST", url, json=dead | {"model": "broken:aligned", "stream": True}) as late:
        assert late.status_code == 200
        assert "engine_unavailable" in late.read().decode()
    chat = {"route": "/v1/chat/completions", "method": "POST"}
    for status in ("503", "400", "404", "200"):
        traffic.settles(1, "nudge_http_responses_total", **chat, status=status)
    error = {"finished_reason": "error"}
    assert traffic.moved("vllm:request_success_total", model_name="dead:aligned", **error) == 1
    assert traffic.moved("vllm:request_success_total", model_name="broken:aligned", **error) == 1
    assert traffic.moved("vllm:request_success_total") == 2


def test_a_client_can_make_no_labels_up(scripted: Server, client: openai.OpenAI, traffic: Traffic):
    series = {key for key in scrape(scripted) if not key[0].startswith("nudge_http")}
    for number in range(5):
        with pytest.raises(openai.NotFoundError):
            ask(client, f"made-up-{number}")
        with pytest.raises(openai.NotFoundError):
            ask(client, f"fox:made-up-{number}")
        ask(client, f"fox@0.3{number}", max_tokens=1)
        assert httpx.get(f"{scripted.url}/made/up/{number}").status_code == 404
        assert httpx.get(f"{scripted.url}/v1/models/made-up-{number}").status_code == 404
        httpx.request("PROPFIND", f"{scripted.url}/made/up/{number}")
    # γ in the name is not a model of its own.
    traffic.settles(5, "vllm:request_success_total", model_name="fox", finished_reason="length")
    unknown = {"route": metrics.UNKNOWN}
    assert traffic.moved("nudge_http_responses_total", **unknown, method="GET") == 5
    assert traffic.moved("nudge_http_responses_total", **unknown, method="unknown") == 5
    models = {"route": "/v1/models/{model:path}", "status": "404"}
    assert traffic.moved("nudge_http_responses_total", **models) == 5
    after = scrape(scripted)
    assert "made" not in repr(sorted(map(str, after)))
    # And all series were there before: a rate needs the 0 before the 1.
    assert {key for key in after if not key[0].startswith("nudge_http")} == series


def test_engines_and_the_process_are_shown(scripted: Server):
    shown = scrape(scripted)
    for engine in ("base", "dead"):
        labels = frozenset({("engine", engine)})
        assert shown["nudge_engine_turns_running", labels] == 0
        assert shown["nudge_engine_restarts_total", labels] >= 0
    assert shown["nudge_engine_up", frozenset({("engine", "base")})] == 1
    assert shown["nudge_degraded_answers_total", frozenset({("model_name", "fox")})] == 0
    assert shown["process_resident_memory_bytes", frozenset()] > 2**20
    assert ("python_gc_collections_total", frozenset({("generation", "0")})) in shown


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (metrics.TTFT_BUCKETS, "TIME_TO_FIRST_TOKEN_BUCKETS"),
        (metrics.ITL_BUCKETS, "INTER_TOKEN_LATENCY_BUCKETS"),
        (metrics.E2E_BUCKETS, "REQUEST_LATENCY_BUCKETS"),
    ],
)
def test_the_buckets_are_vllms(ours: tuple[float, ...], theirs: str):
    assert ours == getattr(importlib.import_module("vllm.v1.metrics.buckets"), theirs)
