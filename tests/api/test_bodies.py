"""How a body may be written: JSON in UTF-8, as it is."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import httpx
import pytest

from tests.api.test_http import BODIES, CHAT
from tests.conftest import Server

JSON = {"Content-Type": "application/json"}
GOOD = BODIES[CHAT] | {"messages": [{"role": "user", "content": "Größe?"}]}
TEXT = json.dumps(GOOD, ensure_ascii=False)


def post(server: Server, body: bytes, path: str = CHAT, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(server.url + path, content=body, headers=JSON | named, timeout=30)


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()["error"]
    assert found["type"] == "invalid_request_error"
    return found


@pytest.mark.parametrize("path", BODIES)
def test_a_byte_order_mark_is_no_part_of_it(scripted: Server, path: str):
    body = json.dumps(BODIES[path]).encode("utf-8-sig")
    assert post(scripted, body, path).status_code == 200
    assert post(scripted, b"\xef\xbb\xbf" + body, path).status_code == 400, "one, not two"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_of_text_is_a_400(scripted: Server, encoding: str):
    found = error(post(scripted, TEXT.encode(encoding)), 400)
    assert "UTF-8" in found["message"] or "not valid JSON" in found["message"]
    if encoding in ("latin-1", "utf-16", "utf-32"):
        assert "UTF-8" in found["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_the_content_type_may_say_more(scripted: Server, kind: str):
    assert post(scripted, TEXT.encode(), Content_Type=kind).status_code == 200


COMPRESSED = {"gzip": gzip.compress, "deflate": zlib.compress, "br": bytes, "zstd": bytes}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("encoding", [*COMPRESSED, "GZIP", "identity, gzip", "x" * 200])
def test_a_compressed_body_is_refused_by_name(scripted: Server, path: str, encoding: str):
    body = COMPRESSED.get(encoding, bytes)(json.dumps(BODIES[path]).encode())
    response = post(scripted, body, path, Content_Encoding=encoding)
    found = error(response, 415)
    assert found["code"] == "unsupported_content_encoding"
    assert encoding.lower()[:50] in found["message"]
    assert len(found["message"]) < 300
    assert response.headers["accept-encoding"] == "identity"
    described = httpx.get(f"{scripted.url}/openapi.json").json()["paths"][path]["post"]
    assert "Accept-Encoding" in described["responses"]["415"]["headers"]


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", "identity, identity"])
def test_and_one_that_says_that_it_is_not_is_read(scripted: Server, encoding: str):
    assert post(scripted, TEXT.encode(), Content_Encoding=encoding).status_code == 200
