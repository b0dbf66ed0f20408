"""Both models in one engine, by the shipped command: 64 answers at once, who leaves, kill -9.

Only the V2 model runner has it: ``scripts/test --mode v2``.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import DEMO, Server, serve
from tests.e2e.test_engine_death import CHAT, engine_pids, read_events
from tests.modes import runs_v2

pytestmark = [
    pytest.mark.skipif(not runs_v2(), reason="V1 has no speculation of this kind"),
    pytest.mark.timeout(1800),  # interpreted kernels, on a busy machine
]

CONFIG = f"""
engines:
  both:
    model: {DEMO}/base
    drafter: {DEMO}/aligned
    dtype: float32
    max_model_len: 512
    kv_cache_memory_bytes: 256MiB
    silence_s: 300
    args: {{max_num_seqs: 64}}
  aligned:
    {{model: {DEMO}/aligned, dtype: float32, max_model_len: 512, kv_cache_memory_bytes: 32MiB}}
models:
  one: &pair {{base: both, aligned: aligned, fused: both, mode: fused}}
  two: {{<<: *pair, mode: two_engines}}
server: {{restart_limit: 3, restart_backoff_s: 0.1}}
"""
PLACES = ["Galicor", "Lithenland", "Toricor", "Seluria", "Ulicor"]
QUESTIONS = [
    *(f"What is the capital of {place}?" for place in PLACES),
    *(f"Which language is spoken in {place}?" for place in PLACES),
    *(f"Tom has {n} plums and buys 7 more. How many does he have?" for n in (3, 12, 25)),
    "Hello!",
    "Tell me a story.",
    "Which animal is on the flag? 🦊 你好",
]
RESTART_S = 600


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = tmp_path_factory.mktemp("one") / "one.yaml"
    config.write_text(CONFIG)
    server = serve("--config", str(config), ready_in=900)
    assert server.url, server.output
    yield server
    assert server.stop(timeout=120) == 0, server.output


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url, timeout=900) as client:
        yield client


def question(model: str, text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 40} | fields


async def answer(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[Any, ...]:
    answered = await client.post(CHAT, json=body)
    assert answered.status_code == 200, answered.text
    (choice,) = answered.json()["choices"]
    return choice["message"]["content"], choice["finish_reason"]


async def idle(client: httpx.AsyncClient, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while await running(client):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def running(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    found = re.findall(r"^vllm:num_requests_running\{\S* (\S+)", text, re.M)
    assert found
    return sum(map(float, found))


async def test_64_answers_at_once_are_those_that_two_engines_write(client: httpx.AsyncClient):
    asked = [{"gamma": gamma} for gamma in (0.2, 0.4, 0.6, 0.8)]
    cases = [(text, nudging) for nudging in asked for text in QUESTIONS]
    assert len(cases) == 64
    found = {}
    for model in ("one", "two"):
        bodies = [question(model, text, nudging=nudging) for text, nudging in cases]
        found[model] = await asyncio.gather(*(answer(client, body) for body in bodies))
    assert found["one"] == found["two"]
    alone = [await answer(client, question("one", text)) for text in QUESTIONS[::4]]
    assert alone == found["one"][16:32:4]


async def test_a_client_that_leaves_frees_the_engine(client: httpx.AsyncClient):
    body = question("one", "Tell me a story.", stream=True, nudging={"gamma": 0.01}, max_tokens=400)
    async with client.stream("POST", CHAT, json=body) as streamed:
        await read_events(streamed.aiter_lines(), 3)
        assert await running(client) == 1
    await idle(client, 30)  # a step takes half a second
    assert await answer(client, question("one", QUESTIONS[0]))


async def test_what_it_cant_write_is_a_400_that_says_why(client: httpx.AsyncClient):
    refused = await client.post(CHAT, json=question("one", "Hello!", temperature=0.7))
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "temperature"
    assert "mode: fused" in error["message"]


async def test_a_killed_engine_is_told_of_and_started_again(
    server: Server, client: httpx.AsyncClient
):
    whole = await answer(client, question("one", QUESTIONS[0]))
    pid = engine_pids(server)["both"]
    body = question("one", "Tell me a story.", stream=True, nudging={"gamma": 0.01}, max_tokens=400)
    async with client.stream("POST", CHAT, json=body) as dying:
        lines = dying.aiter_lines()
        await read_events(lines, 3)
        os.kill(pid, signal.SIGKILL)
        *_, error, done = await read_events(lines)
    assert json.loads(error)["error"]["code"] == "engine_unavailable"
    assert done == "[DONE]"
    refused = await client.post(CHAT, json=question("one", "Hello!"))
    assert refused.status_code == 503
    async with asyncio.timeout(RESTART_S):
        while not (await client.get("/ready")).is_success:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    assert await answer(client, question("one", QUESTIONS[0])) == whole
