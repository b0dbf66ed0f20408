"""How much may be asked at once, how much in one request, and how long it may take."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.conftest import ROOT, Server, serve

LIMITS = str(ROOT / "tests" / "limits.yaml")
CHAT = "/v1/chat/completions"


def body(model: str = "slow", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": model, "messages": messages, "temperature": 0, **fields}


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    """4 answers at once, 8 may wait."""
    server = serve("--config", LIMITS)
    assert server.url, server.output
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def hasty() -> Iterator[Server]:
    """The same, with a second for each request, and prompts of 20 tokens."""
    env = {"NUDGE_SERVER__REQUEST_TIMEOUT_S": "1", "NUDGE_SERVER__MAX_PROMPT_TOKENS": "20"}
    server = serve("--config", LIMITS, env=env)
    assert server.url, server.output
    yield server
    assert server.stop() == 0


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert response.headers["x-request-id"]
    found: dict[str, Any] = response.json()["error"]
    return found


async def at_once(server: Server, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    async with httpx.AsyncClient(limits=httpx.Limits(), timeout=60) as web:
        return await asyncio.gather(*(web.post(server.url + CHAT, json=each) for each in bodies))


OPEN = ("vllm:num_requests_running", "vllm:num_requests_waiting")


async def every_place_is_free(server: Server) -> None:
    """4 run and 8 wait again; with a single place lost the last would be refused."""
    answers = await at_once(server, [body(max_tokens=2) for _ in range(12)])
    assert [answer.status_code for answer in answers] == [200] * 12


async def nobody_is_written_for(server: Server) -> None:
    """Long before an endless answer's own end."""
    async with asyncio.timeout(10), httpx.AsyncClient() as web:
        while True:
            lines = (await web.get(f"{server.url}/metrics")).text.splitlines()
            counts = [line.split()[-1] for line in lines if line.startswith(OPEN)]
            if counts and not any(map(float, counts)):
                return
            await asyncio.sleep(0.05)


# -- many at once ----------------------------------------------------------------------------------


async def test_fifty_at_once_are_answered_or_told_to_come_back(limited: Server):
    answers = await at_once(limited, [body(stream=number % 2 == 0) for number in range(50)])
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses.keys() == {200, 429}
    assert statuses[200] >= 12
    for answer in answers:
        if answer.status_code == 429:
            found = error(answer, 429)
            assert (found["type"], found["code"]) == ("rate_limit_error", "queue_full")
            assert int(answer.headers["retry-after"]) > 0
        else:
            assert "One" in answer.text
            assert '"error"' not in answer.text
    await every_place_is_free(limited)


async def test_the_client_raises_rate_limit_error(limited: Server):
    url = f"{limited.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as ai:
        outcomes = await asyncio.gather(
            *(ai.chat.completions.create(**body()) for _ in range(13)), return_exceptions=True
        )
    refused = [each for each in outcomes if isinstance(each, BaseException)]
    assert [type(each) for each in refused] == [openai.RateLimitError]
    await every_place_is_free(limited)


async def test_clients_who_leave_give_their_places_up(limited: Server):
    """Both those who are answered and those who wait."""
    async with httpx.AsyncClient(limits=httpx.Limits(), timeout=60) as web:

        async def impatient() -> None:
            with pytest.raises(httpx.ReadTimeout):
                await web.post(limited.url + CHAT, json=body("endless"), timeout=0.6)

        async def reads_a_while() -> None:
            endless = body("endless", stream=True)
            async with web.stream("POST", limited.url + CHAT, json=endless) as answer:
                assert answer.status_code == 200
                await anext(answer.aiter_lines())

        await asyncio.gather(*(impatient() for _ in range(12)))
        await nobody_is_written_for(limited)
        await asyncio.gather(*(reads_a_while() for _ in range(4)))
    await nobody_is_written_for(limited)
    await every_place_is_free(limited)


async def test_several_answers_weigh_as_many(limited: Server):
    answers = await at_once(limited, [body(n=3) for _ in range(5)])
    # 3 run, three times 3 don't fit into 8: two wait.
    assert Counter(answer.status_code for answer in answers) == {200: 3, 429: 2}
    await every_place_is_free(limited)


async def test_what_fails_gives_its_place_back(limited: Server):
    for wrong in (body("nobody"), body(logit_bias={"99999": 1}), body(stop=[""]), {}):
        for answer in await at_once(limited, [wrong] * 6):
            assert 400 <= answer.status_code < 500
    await every_place_is_free(limited)


# -- much in one request ---------------------------------------------------------------------------


def test_more_answers_than_allowed_are_refused_by_name(limited: Server):
    found = error(httpx.post(limited.url + CHAT, json=body(n=4)), 400)
    assert found["param"] == "n"
    assert "3 at most" in found["message"]
    prompts = {"model": "slow:base", "prompt": ["a", "b", "c", "d"]}
    assert (
        error(httpx.post(f"{limited.url}/v1/completions", json=prompts), 400)["param"] == "prompt"
    )
    both = {"model": "slow:base", "prompt": ["a", "b"], "n": 2}
    assert error(httpx.post(f"{limited.url}/v1/completions", json=both), 400)["param"] == "n"


@pytest.mark.parametrize(
    ("path", "request_", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "word " * 40}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 10_000}]}, "messages"),
        ("/v1/completions", {"model": "slow:base", "prompt": "word " * 40}, "prompt"),
        ("/v1/completions", {"model": "slow:base", "prompt": ["a", "x" * 10_000]}, "prompt"),
        ("/v1/completions", {"model": "slow:aligned", "prompt": [5] * 21}, "prompt"),
    ],
)
def test_a_prompt_over_the_servers_own_limit_is_refused(
    hasty: Server, path: str, request_: dict[str, Any], param: str
):
    asked = {"model": "slow", "max_tokens": 1} | request_
    found = error(httpx.post(hasty.url + path, json=asked), 400)
    assert (found["code"], found["param"]) == ("context_length_exceeded", param)
    assert "maximum context length is 20 tokens. However, " in found["message"]


def test_a_prompt_of_just_that_many_tokens_is_answered(hasty: Server):
    asked = {"model": "slow:aligned", "prompt": [5] * 20, "max_tokens": 1}
    assert httpx.post(f"{hasty.url}/v1/completions", json=asked).status_code == 200


def test_text_that_can_not_fit_is_not_even_tokenized(limited: Server):
    """A megabyte takes the tokenizer a second, in which nobody else would be answered."""
    text = "some words " * 90_000
    began = time.monotonic()
    for _ in range(5):
        found = error(httpx.post(limited.url + CHAT, json=body(messages=[user(text)])), 400)
        assert found["code"] == "context_length_exceeded"
    assert time.monotonic() - began < 3


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


# -- bodies ----------------------------------------------------------------------------------------


def raw(server: Server, request: bytes, timeout: float = 10) -> tuple[bytes, float]:
    """What comes back until the server has answered in full or closed, and the seconds."""
    host, port = urlsplit(server.url).hostname, urlsplit(server.url).port
    began = time.monotonic()
    received = b""
    with socket.create_connection((host, port), timeout=timeout) as connection:
        connection.sendall(request)
        while not received.endswith(b"}"):
            data = connection.recv(65536)
            if not data:
                break
            received += data
    return received, time.monotonic() - began


def head(*lines: str) -> bytes:
    first = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(limited: Server):
    received, seconds = raw(limited, head("Content-Length: 100000000"))
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in received
    assert b"x-request-id:" in received.lower()
    assert b"connection: close" in received.lower()
    assert seconds < 1


def test_a_client_that_waits_to_be_told_to_send_is_not(limited: Server):
    received, _ = raw(limited, head("Content-Length: 100000000", "Expect: 100-continue"))
    assert received.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("declared", [True, False])
def test_a_client_that_sends_it_all_the_same_sees_the_refusal(limited: Server, declared: bool):
    chunks = (b" " * 100_000 for _ in range(1000))
    headers = {"Content-Type": "application/json"}
    if declared:
        headers["Content-Length"] = "100000000"
    began = time.monotonic()
    with httpx.Client(timeout=20) as web:
        answer = web.post(limited.url + CHAT, content=chunks, headers=headers)
        assert error(answer, 413)["code"] == "request_too_large"
        assert web.get(f"{limited.url}/health").status_code == 200
    assert time.monotonic() - began < 15


def test_a_body_without_a_length_is_read_up_to_the_limit(limited: Server):
    text = json.dumps(body(max_tokens=1)).encode()

    def padded(size: int) -> Iterator[bytes]:
        yield text
        for at in range(len(text), size, 50_000):
            yield b" " * min(50_000, size - at)

    headers = {"Content-Type": "application/json"}
    for size, status in ((2**20, 200), (2**20 + 1, 413)):
        answer = httpx.post(limited.url + CHAT, content=padded(size), headers=headers)
        assert answer.status_code == status, size
    for size, status in ((2**20, 200), (2**20 + 1, 413)):
        whole = b"".join(padded(size))
        answer = httpx.post(limited.url + CHAT, content=whole, headers=headers)
        assert answer.status_code == status, size


@pytest.mark.parametrize(
    "request_",
    [
        head("Content-Length: -5") + b"{}",
        head("Content-Length: many") + b"{}",
        head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
        head("Content-Length: 2") + b"{}" + b"x" * 100,
        b"\x16\x03\x01 what is this\r\n\r\n",
    ],
    ids=range(6),
)
def test_a_request_that_lies_is_a_400_and_the_server_lives(limited: Server, request_: bytes):
    received, seconds = raw(limited, request_)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert seconds < 5
    assert httpx.get(f"{limited.url}/health").status_code == 200


def test_a_body_that_never_comes_is_given_up(hasty: Server):
    received, seconds = raw(hasty, head("Content-Length: 100") + b'{"model":')
    assert received.startswith(b"HTTP/1.1 504 ")
    assert 0.9 < seconds < 5


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_bug(hasty: Server):
    host, port = urlsplit(hasty.url).hostname, urlsplit(hasty.url).port
    with socket.create_connection((host, port)) as connection:
        connection.sendall(head("Content-Length: 100") + b'{"model":')
    time.sleep(0.3)
    assert httpx.get(f"{hasty.url}/health").status_code == 200
    assert "internal error" not in hasty.output
    assert "Traceback" not in hasty.output


def test_a_client_that_reads_only_once_it_has_sent_all_sees_it_too(limited: Server):
    """Were the connection just closed, its sending would fail, and it would never read."""
    connection = http.client.HTTPConnection(urlsplit(limited.url).netloc, timeout=20)
    connection.request("POST", CHAT, b" " * 100_000_000, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.load(answer)["error"]["code"] == "request_too_large"
    connection.close()


# -- time ------------------------------------------------------------------------------------------


def test_an_answer_that_takes_too_long_is_a_504_and_not_asked_for_again(hasty: Server):
    began = time.monotonic()
    with (
        openai.OpenAI(base_url=f"{hasty.url}/v1", api_key="none") as ai,  # it tries 3 times
        pytest.raises(openai.InternalServerError) as caught,
    ):
        ai.chat.completions.create(**body("endless"))
    assert caught.value.status_code == 504
    assert caught.value.code == "timeout"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert 0.9 < time.monotonic() - began < 2.8, "once and not again"


def test_a_stream_that_takes_too_long_ends_with_one_error(hasty: Server):
    with httpx.stream("POST", hasty.url + CHAT, json=body("endless", stream=True)) as answer:
        assert answer.status_code == 200
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert [list(each) == ["error"] for each in events].count(True) == 1
    assert events[-1]["error"]["code"] == "timeout"
    assert len(events) > 5


async def test_who_waits_too_long_is_told_so(hasty: Server):
    """Places are freed by those whose time was up: the last to come waits, and is late too."""
    answers = await at_once(hasty, [body("endless") for _ in range(8)])
    assert [answer.status_code for answer in answers] == [504] * 8
    answers = await at_once(hasty, [body(max_tokens=2) for _ in range(12)])
    assert [answer.status_code for answer in answers] == [200] * 12


def test_long_text_is_read_whole(limited: Server):
    """It is tokenized beside the event loop."""
    messages = [user("some words " * 2000)]
    asked = {"model": "endless", "messages": messages}
    counted = httpx.post(f"{limited.url}/tokenize", json=asked).json()["count"]
    answer = httpx.post(limited.url + CHAT, json=body(max_tokens=1, **asked), timeout=30)
    assert answer.json()["usage"]["prompt_tokens"] == counted > 4000


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("priorities", "order"), [([0, 0, 0], [0, 1, 2]), ([0, 3, -1], [0, 2, 1])])
async def test_answers_come_in_the_order_of_the_requests_and_their_priorities(
    limited: Server, priorities: list[int], order: list[int]
):
    finished: list[int] = []

    async with httpx.AsyncClient(limits=httpx.Limits(), timeout=60) as web:

        async def ask(number: int) -> None:
            # Three at a time fill the server: 3 + 3 > 4.
            asked = body(n=3, max_tokens=4, priority=priorities[number])
            answer = await web.post(limited.url + CHAT, json=asked)
            assert answer.status_code == 200
            finished.append(number)

        asking = []
        for number in range(3):
            asking.append(asyncio.create_task(ask(number)))
            await asyncio.sleep(0.05)
        await asyncio.gather(*asking)
    assert finished == order
