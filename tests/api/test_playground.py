"""The page's files: what is handed out, to whom, and with which headers."""

from __future__ import annotations

import re
import socket

import httpx
import pytest

from server.api import playground
from tests.conftest import ROOT, Server

STATIC = ROOT / "server" / "api" / "playground" / "static"
PATHS = sorted(playground.FILES)


def test_every_file_of_the_folder_is_served_as_it_is(scripted: Server):
    assert len(PATHS) == len([file for file in STATIC.iterdir() if file.is_file()])
    for path in PATHS:
        response = httpx.get(scripted.url + path)
        assert response.status_code == 200
        assert response.content == playground.FILES[path].read_bytes()


def test_what_a_browser_may_do_with_it_is_said(scripted: Server):
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for path in PATHS:
        headers = httpx.get(scripted.url + path).headers
        policy = dict(
            part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-request-id"]
        suffix = playground.FILES[path].suffix
        assert headers["content-type"].startswith(kinds.get(suffix, "text/html"))


def test_nothing_of_it_comes_from_elsewhere():
    for file in STATIC.iterdir():
        text = file.read_text("utf-8")
        outside = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text)
        assert [each for each in outside if "www.w3.org" not in each] == [], file.name
        for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
            assert way not in text, (file.name, way)


def test_head_has_the_headers_and_no_body(scripted: Server):
    for path in PATHS:
        got, head = httpx.get(scripted.url + path), httpx.head(scripted.url + path)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "content-type", "etag", "content-security-policy"):
            assert head.headers[name] == got.headers[name]


def test_what_a_browser_has_already_is_not_sent_again(scripted: Server):
    tag = httpx.get(scripted.url).headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        again = httpx.get(scripted.url, headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert httpx.get(scripted.url, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/playground",
        "/playground/",
        "/playground/index.html",
        "/playground/__init__.py",
        "/playground/../access.py",
        "/playground/..%2f..%2f..%2fpyproject.toml",
        "/playground/%2e%2e/%2e%2e/access.py",
        "/playground/..\\access.py",
        "/playground//etc/passwd",
        "/playground/app.js/../../access.py",
        "/playground/app.js%00",
        "/playground/APP.JS",
    ],
)
def test_no_other_path_leads_to_a_file(scripted: Server, path: str):
    # By hand, because clients tidy such paths up.
    port = int(scripted.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split(b" ", 2)[1] == b"404"
    assert b"import" not in answer
    assert b"root:" not in answer


def test_it_is_read_only(scripted: Server):
    for method in ("POST", "PUT", "DELETE"):
        assert httpx.request(method, scripted.url).status_code == 405


def test_with_keys_the_page_loads_and_the_api_asks_for_one(keyed: Server):
    for path in PATHS:
        assert httpx.get(keyed.url + path).status_code == 200
        assert httpx.head(keyed.url + path).status_code == 200
    for path in ("/v1/models", "/playground/", "/playground/index.html", "/playground/x.js"):
        assert httpx.get(keyed.url + path).status_code == 401
    chat = {"model": "tale", "messages": [{"role": "user", "content": "x"}]}
    assert httpx.post(f"{keyed.url}/v1/chat/completions", json=chat).status_code == 401


def test_a_card_says_what_a_request_starts_from(scripted: Server):
    cards = {card["id"]: card for card in httpx.get(f"{scripted.url}/v1/models").json()["data"]}
    assert cards["tale"]["nudging"] == {
        "gamma": 0.4,
        "entropy": 2.0,
        "policy": "nudging",
        "start": "aligned",
        "end_lookahead": 0,
        "end_check": "newline",
        "max_rounds": None,
    }
    assert cards["tale"]["sampling"] == {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0}
    assert "nudging" not in cards["tale:base"]
    own = httpx.get(f"{scripted.url}/v1/models/tale@0.25").json()
    assert own["nudging"]["gamma"] == 0.25


@pytest.mark.parametrize("stream", [True, False])
def test_a_trace_says_what_the_base_model_would_have_written_at_the_end(
    scripted: Server, stream: bool
):
    chat = {
        "model": "tale",
        "messages": [{"role": "user", "content": "x"}],
        "nudging": {"trace": True},
    }
    url = f"{scripted.url}/v1/chat/completions"
    if stream:
        lines = httpx.post(url, json=chat | {"stream": True}).text.splitlines()
        events = [line.removeprefix("data: ") for line in lines if line.startswith("data: {")]
        trace = httpx.Response(200, text=events[-1]).json()["choices"][0]["nudging"]
    else:
        trace = httpx.post(url, json=chat).json()["choices"][0]["nudging"]
    assert trace["stop_reason"] == "aligned_end"
    assert " Then".startswith(trace["rejected"]["text"])
    assert trace["rejected"]["top_prob"] == pytest.approx(0.25)
    cut = httpx.post(url, json=chat | {"max_tokens": 3}).json()["choices"][0]["nudging"]
    assert cut["stop_reason"] == "length"
    assert "rejected" not in cut
