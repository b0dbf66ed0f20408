"""How routes may be asked for: with a slash too many, and by HEAD."""

from __future__ import annotations

import httpx
import pytest

from tests.api.test_http import BODIES
from tests.api.test_metrics import Traffic
from tests.conftest import KEY, Server

READABLE = ("/health", "/ready", "/metrics", "/version", "/v1/models", "/v1/models/fox",
            "/v1/models/fox@0.3", "/openapi.json", "/")  # fmt: skip
FREE = {"/health", "/ready", "/metrics", "/version", "/openapi.json", "/"}


def slashed(path: str) -> list[str]:
    inside = path.replace("/", "//")
    return [path + "/", path + "//", inside, inside + "/", path + "/?x=/"]


@pytest.mark.parametrize("path", BODIES)
def test_a_slash_too_many_is_none(scripted: Server, path: str):
    for each in slashed(path):
        answer = httpx.post(scripted.url + each, json=BODIES[path])
        assert answer.status_code == 200, each


@pytest.mark.parametrize("path", READABLE)
def test_with_keys_too_and_what_needs_none_needs_none(keyed: Server, path: str):
    for each in [path, *slashed(path)]:
        answer = httpx.get(keyed.url + each)
        assert answer.status_code == (200 if path in FREE else 401), each
        answer = httpx.get(keyed.url + each, headers={"Authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200, each


def test_a_model_with_a_slash_is_the_model_and_without_a_name_all_are_listed(scripted: Server):
    assert httpx.get(f"{scripted.url}/v1/models/fox/").json()["id"] == "fox"
    assert httpx.get(f"{scripted.url}/v1/models/").json()["object"] == "list"


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/chat", "/playground"])
def test_what_is_not_there_is_not_elsewhere_either(scripted: Server, path: str):
    for each in [path, *slashed(path)]:
        for method in ("GET", "POST", "HEAD"):
            answer = httpx.request(method, scripted.url + each)
            assert answer.status_code == 404, (method, each)
            assert "location" not in answer.headers


@pytest.mark.parametrize("path", READABLE)
def test_head_answers_as_get_without_the_body(keyed: Server, path: str):
    for headers in ({}, {"Authorization": f"Bearer {KEY}"}):
        for each in (path, path + "/"):
            with httpx.Client(base_url=keyed.url, headers=headers) as client:
                got, head, again = client.get(each), client.head(each), client.get(each)
            assert head.status_code == got.status_code == (200 if headers or path in FREE else 401)
            assert head.content == b""
            if path != "/metrics":  # which has moved by one request
                assert head.headers["content-length"] == str(len(got.content))
            assert int(head.headers["content-length"]) > 0
            named = {"date", "x-request-id", "request-id", "content-length"}
            assert {(k, v) for k, v in head.headers.items() if k not in named} == {
                (k, v) for k, v in got.headers.items() if k not in named
            }
            assert again.status_code == got.status_code, "the connection goes on behind it"


def test_head_of_a_model_that_is_not_there_is_a_404(scripted: Server):
    head = httpx.head(f"{scripted.url}/v1/models/nobody")
    assert (head.status_code, head.content) == (404, b"")


@pytest.mark.parametrize("path", BODIES)
def test_what_is_posted_to_can_not_be_read(scripted: Server, path: str):
    for method in ("HEAD", "GET", "PUT", "DELETE", "OPTIONS"):
        answer = httpx.request(method, scripted.url + path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST"), method


@pytest.mark.parametrize("path", READABLE)
def test_and_the_other_way_round(scripted: Server, path: str):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = httpx.request(method, scripted.url + path)
        assert answer.status_code == 405, method
        assert sorted(answer.headers["allow"].split(", ")) == ["GET", "HEAD"]


def test_each_is_counted_under_its_route_and_method(scripted: Server):
    traffic = Traffic(scripted)
    httpx.head(f"{scripted.url}/v1/models/fox/")
    httpx.get(f"{scripted.url}//v1/models/fox")
    for method in ("HEAD", "GET"):
        traffic.settles(
            1,
            "nudge_http_responses_total",
            route="/v1/models/{model:path}",
            method=method,
            status="200",
        )
