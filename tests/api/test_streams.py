"""What happens while an answer is written, on slow scripted engines."""

from __future__ import annotations

import itertools
import json
import re
import time
from typing import Any

import httpx
import pytest

from tests.conftest import Server


def body(model: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hi"}]
    return {"model": model, "messages": messages, "temperature": 0, **fields}


def events(response: httpx.Response):
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def running(server: Server) -> int:
    """Turns in all engines, from the metrics."""
    found = re.findall(
        r"^nudge_engine_turns_running\{.*\} (\S+)", httpx.get(f"{server.url}/metrics").text, re.M
    )
    assert found
    return int(sum(map(float, found)))


def test_deltas_come_while_the_engines_work(scripted: Server):
    times = []
    with httpx.stream(
        "POST", f"{scripted.url}/v1/chat/completions", json=body("fox", stream=True)
    ) as response:
        for event in events(response):
            if event["choices"][0]["delta"].get("content"):
                times.append(time.monotonic())
    # Twenty-odd steps of 20 ms: the first delta is there long before the last one.
    assert times[-1] - times[0] > 0.1
    assert len(times) > 5
    assert max(b - a for a, b in itertools.pairwise(times)) < (times[-1] - times[0]) / 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_both_engines_at_once(scripted: Server, stream: bool):
    client = httpx.Client()
    request = client.build_request(
        "POST", f"{scripted.url}/v1/chat/completions", json=body("endless", stream=stream)
    )
    if stream:
        response = client.send(request, stream=True)
        coming = events(response)
        next(coming)
        assert running(scripted) == 1
        response.close()
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(request.url, json=body("endless"), timeout=0.5)
    client.close()
    deadline = time.monotonic() + 1
    while running(scripted) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running(scripted) == 0


def test_a_silent_stream_is_kept_alive():
    from tests.conftest import ROOT, serve

    server = serve(
        "--config",
        str(ROOT / "tests" / "scripted.yaml"),
        env={"NUDGE_SERVER__KEEP_ALIVE_S": "0.05"},
    )
    try:
        slow = body("slow", stream=True)
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=slow, timeout=30
        ) as response:
            lines = list(response.iter_lines())
    finally:
        assert server.stop() == 0
    assert ": keep-alive" in lines
    assert lines[-2:] == ["data: [DONE]", ""]


def test_line_separators_in_a_text_do_not_cut_the_event(scripted: Server):
    with httpx.stream(
        "POST", f"{scripted.url}/v1/chat/completions", json=body("separators:aligned", stream=True)
    ) as response:
        raw = response.read()
    text = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        for line in raw.decode().splitlines()
        if line.startswith("data: {")
    )
    assert text == "a\u2028b\u0085c\u2029d"


def test_a_failure_in_mid_stream_is_one_lone_error_then_done(scripted: Server):
    with httpx.stream(
        "POST", f"{scripted.url}/v1/chat/completions", json=body("broken:aligned", stream=True)
    ) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    failure = json.loads(lines[-2].removeprefix("data: "))
    assert list(failure) == ["error"]
    assert failure["error"]["code"] == "engine_unavailable"


def test_a_failure_before_the_first_token_has_its_status(scripted: Server):
    for stream in (True, False):
        response = httpx.post(
            f"{scripted.url}/v1/chat/completions", json=body("dead:aligned", stream=stream)
        )
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_unavailable"
        assert response.headers["retry-after"]
