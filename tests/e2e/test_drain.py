"""The end of a server that is writing: what runs may finish, what comes is told to go elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import ROOT, Server, alive, all_gone, serve
from tests.e2e.test_serve import free_port
from tests.thorough import thorough

LIMITS = str(ROOT / "tests" / "limits.yaml")
CHAT = "/v1/chat/completions"


def body(model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": model, "messages": messages, "temperature": 0, **fields}


@contextmanager
def serving(**env: str) -> Iterator[Server]:
    server = serve("--config", LIMITS, env={f"NUDGE_SERVER__{k}": v for k, v in env.items()})
    assert server.url, server.output
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait(10)


def lines(answer: httpx.Response) -> Iterator[str]:
    return (line for line in answer.iter_lines() if line)


def events(rest: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in rest if line.startswith("data: {")]


def until(what: Any, within: float = 5) -> None:
    deadline = time.monotonic() + within
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_answers_finish_and_new_requests_are_refused(how: signal.Signals):
    with serving(MAX_RUNNING="1", MAX_N="1") as server, ThreadPoolExecutor() as pool:
        with httpx.stream("POST", server.url + CHAT, json=body("slow", stream=True)) as answer:
            coming = lines(answer)
            next(coming)
            waiting = pool.submit(httpx.post, server.url + CHAT, json=body("slow"), timeout=30)
            time.sleep(0.3)
            server.process.send_signal(how)
            until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
            ready = httpx.get(f"{server.url}/ready")
            assert ready.json() == {"status": "shutting_down"}
            assert ready.headers["retry-after"]
            assert httpx.get(f"{server.url}/health").status_code == 200
            with (
                openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as ai,
                pytest.raises(openai.InternalServerError) as caught,
            ):
                ai.chat.completions.create(**body("slow"))
            assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
            assert caught.value.response.headers["retry-after"]
            rest = list(coming)
        assert rest[-1] == "data: [DONE]"
        assert events(rest)[-1]["choices"][0]["finish_reason"] == "stop"
        # The one that waited had been let in, so it is answered too.
        assert waiting.result().status_code == 200
        assert server.process.wait(15) == 0
    assert "finishing 2 answers, up to 30 s; Ctrl-C again stops now" in server.output
    assert "Traceback" not in server.output


def test_what_has_not_finished_in_time_is_ended():
    with serving(DRAIN_S="1") as server, ThreadPoolExecutor() as pool:
        whole = pool.submit(httpx.post, server.url + CHAT, json=body("endless"), timeout=30)
        endless = body("endless", stream=True)
        with httpx.stream("POST", server.url + CHAT, json=endless) as answer:
            coming = lines(answer)
            next(coming)
            time.sleep(0.3)
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            rest = list(coming)
            assert 0.8 < time.monotonic() - told < 4
        assert rest[-1] == "data: [DONE]"
        failures = [each for each in events(rest) if "error" in each]
        assert failures == [events(rest)[-1]]
        assert failures[0]["error"]["code"] == "shutting_down"
        ended = whole.result()
        assert ended.status_code == 503
        assert ended.json()["error"]["code"] == "shutting_down"
        assert server.process.wait(15) == 0


def test_a_second_ctrl_c_stops_at_once():
    with serving() as server:
        endless = body("endless", stream=True)
        with httpx.stream("POST", server.url + CHAT, json=endless) as answer:
            coming = lines(answer)
            next(coming)
            server.process.send_signal(signal.SIGINT)
            for _ in range(20):
                assert '"error"' not in next(coming)
            server.process.send_signal(signal.SIGINT)
            told = time.monotonic()
            rest = list(coming)
            assert time.monotonic() - told < 2
        assert events(rest)[-1]["error"]["code"] == "shutting_down"
        assert server.process.wait(15) == 0


def test_a_server_that_writes_nothing_ends_at_once():
    with serving(DRAIN_S="600") as server, httpx.Client() as web:
        assert web.get(f"{server.url}/health").status_code == 200  # the connection stays open
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
    assert "finishing" not in server.output


@thorough
def test_ctrl_c_at_a_terminal_does_not_reach_the_engines():
    """A terminal sends it to the whole process group: the engines must go on all the same."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    config = str(ROOT / "tests" / "one.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--port", str(port), "--config", config],
        cwd=ROOT,
        env=os.environ | {"NUDGE_SERVER__DRAIN_S": "60", "NUDGE_SERVER__MAX_RUNNING": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = Server(process, url=url)
    try:
        until(lambda: is_ready(url), 200)
        pids = server.children()
        assert any(b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
        long = body("demo:aligned", ignore_eos=True, max_tokens=200)
        with ThreadPoolExecutor(10) as pool, httpx.Client(base_url=url, timeout=120) as web:
            # One after the other: most are computed after the signal, however fast the engine.
            waiting = [pool.submit(web.post, CHAT, json=long) for _ in range(10)]
            until(lambda: in_queue(web) >= 5, 20)
            os.killpg(process.pid, signal.SIGINT)
            until(lambda: httpx.get(f"{url}/ready").json() == {"status": "shutting_down"})
            answers = [each.result() for each in waiting]
        # On a busy machine some of them may have come after the signal.
        inside = [answer.json() for answer in answers if not refused(answer)]
        assert len(inside) >= 6
        for answer in inside:
            assert answer.get("choices", [{}])[0].get("finish_reason") == "length", answer
        assert process.wait(30) == 0
        assert all_gone(pids), alive(pids)
    finally:
        process.kill()
        process.wait(10)


def refused(answer: httpx.Response) -> bool:
    return answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"


def in_queue(web: httpx.Client) -> float:
    text = web.get("/metrics").text
    return sum(map(float, re.findall(r"^vllm:num_requests_waiting\{\S* (\S+)", text, re.M)))


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        time.sleep(0.5)
        return False
