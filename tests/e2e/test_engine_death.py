"""An engine that dies or hangs is noticed, told of, and started again: the shipped command, real
engines, kill -9 and kill -STOP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import DEMO, Server, serve
from tests.thorough import thorough

SILENCE_S = 3
CONFIG = f"""
engines:
  base: &engine
    model: {DEMO}/base
    dtype: float32
    max_model_len: 512
    kv_cache_memory_bytes: 32MiB
    silence_s: {SILENCE_S}
  aligned: {{<<: *engine, model: {DEMO}/aligned}}
models:
  demo: {{base: base, aligned: aligned, degraded: aligned}}
  strict: {{base: base, aligned: aligned}}
server: {{restart_limit: 3, restart_backoff_s: 0.1}}
"""

CHAT = "/v1/chat/completions"
RESTART_S = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = tmp_path_factory.mktemp("death") / "demo.yaml"
    config.write_text(CONFIG)
    server = serve("--config", str(config))
    assert server.url, server.output
    yield server
    server.stop()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that is ready."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        await ready(client)
        yield client


async def ready(client: httpx.AsyncClient, wanted: bool = True) -> None:
    async with asyncio.timeout(RESTART_S):
        while (await client.get("/ready")).is_success is not wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def engine_pids(server: Server) -> dict[str, int]:
    """The engines' processes, by engine. They start in the order that the terminal shows."""
    shown = [line.split()[1] for line in server.lines if line.split()[:1] == ["loading"]]
    last = {name: number for number, name in enumerate(shown)}
    living = []
    for pid in server.children():
        if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes():
            living.append((int(Path(f"/proc/{pid}/stat").read_text().split()[21]), pid))
    assert len(living) == len(last)
    pids = [pid for _, pid in sorted(living)]
    return dict(zip(sorted(last, key=last.__getitem__), pids, strict=True))


def question(model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is the capital of Galicor?"}]
    return {"model": model, "messages": messages, "temperature": 0} | fields


def endless(model: str, **fields: Any) -> dict[str, Any]:
    """An answer of a second or so."""
    return question(model, ignore_eos=True, max_tokens=400, **fields)


def counted(answer: dict[str, Any]) -> dict[str, Any]:
    """Its usage, but what was in the cache: that depends on who asked before."""
    return {name: n for name, n in answer["usage"].items() if name != "prompt_tokens_details"}


async def read_events(lines: AsyncIterator[str], most: int | None = None) -> list[str]:
    events: list[str] = []
    while len(events) != most:
        try:
            line = await anext(lines)
        except StopAsyncIteration:
            break
        if line.startswith("data: "):
            events.append(line.removeprefix("data: "))
    return events


async def test_a_death_in_mid_stream(server: Server, client: httpx.AsyncClient):
    whole = (await client.post(CHAT, json=question("demo"))).json()
    pid = engine_pids(server)["base"]

    async with client.stream("POST", CHAT, json=endless("strict:base", stream=True)) as dying:
        lines = dying.aiter_lines()
        before = await read_events(lines, 5)
        assert all("choices" in json.loads(each) for each in before)
        other = asyncio.create_task(client.post(CHAT, json=endless("strict:aligned")))
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        *after, error, done = await read_events(lines)
        assert time.monotonic() - killed < SILENCE_S  # it is seen, not only missed
        assert all("choices" in json.loads(each) for each in after)
        assert json.loads(error).keys() == {"error"}
        assert json.loads(error)["error"]["code"] == "engine_unavailable"
        assert done == "[DONE]"

    state = await client.get("/ready")
    assert (state.status_code, state.json()) == (503, {"status": "engine_unavailable"})
    assert state.headers["retry-after"]
    for model in ("strict", "strict:base", "demo:base"):
        asked = time.monotonic()
        refused = await client.post(CHAT, json=question(model))
        assert time.monotonic() - asked < 1
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert refused.headers["retry-after"]
    assert 'nudge_engine_up{engine="base"} 0.0' in (await client.get("/metrics")).text

    # The other engine goes on, in what is asked of it now and in what it was writing.
    alone = await client.post(CHAT, json=question("demo:aligned"))
    assert alone.status_code == 200
    assert "x-nudge-degraded" not in alone.headers
    degraded = await client.post(CHAT, json=question("demo", nudging={"gamma": 0.9}))
    assert degraded.status_code == 200, degraded.text
    assert degraded.headers["x-nudge-degraded"] == "aligned"
    assert degraded.json()["choices"] == alone.json()["choices"]
    assert counted(degraded.json()) == counted(alone.json())
    async with client.stream("POST", CHAT, json=question("demo", stream=True)) as streamed:
        assert streamed.headers["x-nudge-degraded"] == "aligned"
    text = await client.post("/v1/completions", json={"model": "demo", "prompt": "Hello"})
    assert text.headers["x-nudge-degraded"] == "aligned"
    metrics = (await client.get("/metrics")).text
    assert 'nudge_degraded_answers_total{model_name="demo"} 3.0' in metrics

    assert (await other).json()["usage"]["completion_tokens"] == 400

    await ready(client)
    again = await client.post(CHAT, json=question("demo"))
    assert "x-nudge-degraded" not in again.headers
    assert again.json()["choices"] == whole["choices"]
    assert counted(again.json()) == counted(whole)
    assert "engine 'base' died (killed by signal 9)" in server.output
    assert "Traceback" not in server.output
    assert 'nudge_engine_restarts_total{engine="base"} 1.0' in (await client.get("/metrics")).text


@thorough
async def test_two_deaths_at_once_are_two_starts_in_turn_and_leave_nothing_behind(
    server: Server, client: httpx.AsyncClient
):
    whole = (await client.post(CHAT, json=question("strict"))).json()
    files = open_files(server)
    shown = len(server.lines)
    asked = [
        asyncio.create_task(client.post(CHAT, json=endless(model, n=2)))
        for model in ("strict", "strict:base", "strict:aligned")
        for _ in range(3)
    ]
    await asyncio.sleep(0.3)
    for pid in engine_pids(server).values():
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(2):
        for answer in await asyncio.gather(*asked):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "engine_unavailable"
            assert answer.headers["retry-after"]
    refused = await client.post(CHAT, json=question("demo"))  # nobody is there to stand in
    assert refused.status_code == 503
    await ready(client)
    starts = [line.split()[:2] for line in server.lines[shown:]]
    starts = [start for start in starts if start[:1] in (["loading"], ["ready"])]
    assert [start[0] for start in starts] == ["loading", "ready", "loading", "ready"]
    assert starts[0][1] == starts[1][1]
    assert (await client.post(CHAT, json=question("strict"))).json()["choices"] == whole["choices"]
    async with asyncio.timeout(5):
        while open_files(server) > files:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_no_engine_has_the_port_or_a_clients_connection(
    server: Server, client: httpx.AsyncClient
):
    """The engines that run were started again while clients were connected. One that had such a
    socket would keep the connection open when the server closes it."""
    for pid in server.children():
        files = f"/proc/{pid}/fd"
        mine = {os.stat(f"{files}/{each}").st_ino for each in os.listdir(files)}
        assert not mine & sockets_of(int(server.url.rpartition(":")[2])), pid
    assert sockets_of(int(server.url.rpartition(":")[2]))


def sockets_of(port: int) -> set[int]:
    """The inodes of sockets that listen on a port of this machine, or are connected to it."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            found.add(int(fields[9]))
    return found


def open_files(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


async def test_ctrl_c_in_the_terminal_leaves_the_engines_to_the_server(
    server: Server, client: httpx.AsyncClient
):
    pids = engine_pids(server)
    for pid in pids.values():
        os.kill(pid, signal.SIGINT)  # as the terminal sends it to every process
    await asyncio.sleep(0.5)
    assert (await client.post(CHAT, json=question("strict"))).status_code == 200
    assert engine_pids(server) == pids


async def test_an_engine_that_hangs_in_mid_stream_is_killed_and_started_again(
    server: Server, client: httpx.AsyncClient
):
    whole = (await client.post(CHAT, json=question("strict"))).json()
    pid = engine_pids(server)["aligned"]
    async with client.stream("POST", CHAT, json=endless("strict:aligned", stream=True)) as hanging:
        lines = hanging.aiter_lines()
        await read_events(lines, 5)
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        waits = asyncio.create_task(client.post(CHAT, json=endless("strict:aligned")))
        # The other engine isn't disturbed, however long it writes.
        other = asyncio.create_task(client.post(CHAT, json=endless("strict:base")))
        *after, error, done = await read_events(lines)
        assert SILENCE_S - 1 < time.monotonic() - stopped < SILENCE_S + 8
    assert all("choices" in json.loads(each) for each in after)
    assert json.loads(error).keys() == {"error"}
    assert json.loads(error)["error"]["code"] == "engine_unavailable"
    assert done == "[DONE]"
    assert (await waits).status_code == 503
    assert (await other).json()["usage"]["completion_tokens"] == 400
    state = await client.get("/ready")
    assert (state.status_code, state.json()) == (503, {"status": "engine_unavailable"})
    refused = await client.post(CHAT, json=question("strict"))
    assert refused.status_code == 503
    await ready(client)
    again = await client.post(CHAT, json=question("strict"))
    assert again.json()["choices"] == whole["choices"]
    assert "engine 'aligned' hung: it wrote nothing for" in server.output
    assert "Traceback" not in server.output
    assert engine_pids(server)["aligned"] != pid


@thorough
async def test_one_that_hangs_while_nobody_asks_is_found_out_by_whoever_asks_next(
    server: Server, client: httpx.AsyncClient
):
    whole = (await client.post(CHAT, json=question("strict"))).json()
    os.kill(engine_pids(server)["base"], signal.SIGSTOP)
    await asyncio.sleep(SILENCE_S + 2)
    await ready(client)  # it has nothing to write, and there is nothing to see
    asked = time.monotonic()
    answer = await client.post(CHAT, json=question("strict"))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "engine_unavailable"
    assert time.monotonic() - asked < SILENCE_S + 10  # and its prompt's part
    await ready(client, False)
    await ready(client)
    again = await client.post(CHAT, json=question("strict"))
    assert again.json()["choices"] == whole["choices"]


@thorough
async def test_it_gives_up_on_an_engine_that_keeps_dying(server: Server, client: httpx.AsyncClient):
    """After the tests above, which it counts too, the first death is one too many."""
    with contextlib.suppress(httpx.TransportError):
        for _ in range(4):
            os.kill(engine_pids(server)["base"], signal.SIGKILL)
            await ready(client, False)
            await ready(client)
    assert server.process.wait(20) == 1
    assert "error engine 'base' is dead" in server.output
