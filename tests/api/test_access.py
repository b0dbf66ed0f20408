"""Who may ask: API keys, pages of other origins, and certificates."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from server.api.access import Keys
from server.api.app import create_app
from server.cli import app
from server.config import ServerSettings, load
from server.core import ConfigError
from server.serving.registry import Registry
from tests.conftest import ROOT, Server, serve

LIMITS = ROOT / "tests" / "limits.yaml"
PLAIN, HASHED, FILED = "sk-plain-4711", "sk-hashed-4712", "sk-filed#4713"
CHAT = {"model": "slow", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
PAGE = "https://chat.example.org"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Keys of each kind, and one origin whose pages may ask."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"# of the office\n\n{FILED}  # its comment\n")
    hashed = "sha256:" + hashlib.sha256(HASHED.encode()).hexdigest()
    server = serve(
        "--config",
        str(LIMITS),
        env={
            "NUDGE_SERVER__API_KEYS": json.dumps([PLAIN, hashed]),
            "NUDGE_SERVER__API_KEYS_FILE": str(file),
            "NUDGE_SERVER__CORS_ORIGINS": json.dumps([PAGE]),
            "NUDGE_SERVER__MAX_PER_KEY": "2",
            "NUDGE_SERVER__LOG_LEVEL": "debug",
        },
    )
    assert server.url, server.output
    yield server
    assert server.stop() == 0
    for key in (PLAIN, HASHED, FILED):
        assert key not in server.output


def client(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


@pytest.mark.parametrize("key", [PLAIN, HASHED, FILED])
def test_each_kind_of_key_is_let_in(guarded: Server, key: str):
    with client(guarded, key) as ai:
        assert ai.chat.completions.create(**CHAT).choices
        assert ai.models.list().data


@pytest.mark.parametrize(
    "key", ["wrong", PLAIN[:-1], PLAIN + "x", PLAIN.upper(), "sk-filed", "# of the office"]
)
def test_another_key_is_an_authentication_error(guarded: Server, key: str):
    with client(guarded, key) as ai, pytest.raises(openai.AuthenticationError) as caught:
        ai.chat.completions.create(**CHAT)
    assert caught.value.code == "invalid_api_key"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    assert caught.value.request_id
    assert key not in caught.value.message


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": PLAIN},
        {"Authorization": f"Basic {PLAIN}"},
        {"Authorization": b"Bearer \xff\xfe"},
        {"x-api-key": PLAIN[:-1]},
        {"x-api-key": f"Bearer {PLAIN}"},
        {"Authorization": "Bearer sha256:" + hashlib.sha256(PLAIN.encode()).hexdigest()},
    ],
    ids=range(9),
)
def test_nothing_but_a_known_key_lets_in(guarded: Server, headers: dict[str, Any]):
    for method, path in [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/no")]:
        response = httpx.request(method, guarded.url + path, headers=headers)
        assert response.status_code == 401, path
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["x-request-id"]


def test_the_scheme_is_read_in_any_case(guarded: Server):
    headers = {"Authorization": f"bearer  {PLAIN}"}
    assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 200


def test_every_route_but_the_open_ones_needs_a_key(guarded: Server):
    paths = httpx.get(f"{guarded.url}/openapi.json").json()["paths"]
    free = {"/", "/health", "/ready", "/version", "/metrics", "/openapi.json"}
    asked = 0
    for path, methods in paths.items():
        for method in methods:
            status = httpx.request(method, guarded.url + re.sub("{.*}", "x", path)).status_code
            assert (status == 401) == (path not in free), (method, path, status)
            asked += path not in free
    assert asked >= 4
    for path in free:
        assert httpx.get(guarded.url + path).status_code != 401


def test_a_key_has_its_share_and_no_more(guarded: Server):
    with client(guarded, PLAIN) as ai, client(guarded, HASHED) as other:
        stream = ai.chat.completions.create(
            **CHAT | {"model": "endless", "max_tokens": None}, n=2, stream=True
        )
        with stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as caught:
                ai.chat.completions.create(**CHAT)
            assert caught.value.code == "too_many_for_key"
            assert caught.value.response.headers["retry-after"]
            assert other.chat.completions.create(**CHAT).choices
        with pytest.raises(openai.BadRequestError) as never:
            ai.chat.completions.create(**CHAT, n=3)
        assert never.value.param == "n"


# -- pages of other origins ------------------------------------------------------------------------


def preflight(server: Server, origin: str) -> httpx.Response:
    return httpx.options(
        f"{server.url}/v1/chat/completions",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        },
    )


def test_a_page_of_a_named_origin_may_ask(guarded: Server):
    asked = preflight(guarded, PAGE)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert asked.headers["x-request-id"]
    headers = {"Origin": PAGE, "Authorization": f"Bearer {PLAIN}"}
    for response in (
        httpx.get(f"{guarded.url}/v1/models", headers=headers),
        httpx.get(f"{guarded.url}/v1/models", headers={"Origin": PAGE}),  # 401
        httpx.get(f"{guarded.url}/nowhere", headers=headers),  # 404
        httpx.post(f"{guarded.url}/v1/completions", headers=headers, json={}),  # 400
        httpx.post(f"{guarded.url}/v1/completions", headers=headers, content=b"x" * 2**21),  # 413
    ):
        assert response.headers["access-control-allow-origin"] == PAGE, response.status_code
        assert "x-request-id" in response.headers["access-control-expose-headers"].lower()
        assert response.headers["x-request-id"]


def test_a_page_of_another_origin_may_not(guarded: Server):
    asked = preflight(guarded, "https://evil.example.org")
    assert asked.status_code == 400
    assert "access-control-allow-origin" not in asked.headers
    headers = {"Origin": "https://evil.example.org", "Authorization": f"Bearer {PLAIN}"}
    answer = httpx.get(f"{guarded.url}/v1/models", headers=headers)
    assert "access-control-allow-origin" not in answer.headers


def test_by_default_no_page_may(scripted: Server):
    assert preflight(scripted, PAGE).status_code == 405
    answer = httpx.get(f"{scripted.url}/v1/models", headers={"Origin": PAGE})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


async def test_a_bug_has_a_request_id_and_can_be_read_by_a_page():
    settings = load(LIMITS, server__cors_origins=["*"])

    async def start() -> None: ...

    web = create_app(Registry(settings), start=start)

    @web.get("/bug")
    async def bug() -> None:
        raise RuntimeError("secret")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(web)) as asking:
        response = await asking.get(
            "http://x/bug", headers={"Origin": PAGE, "X-Request-Id": "mine"}
        )
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["access-control-allow-origin"] == "*"


# -- what is wrong with the settings ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("", r"api_keys\[1\]: an empty key"),
        ("sha256:topsecret", r"api_keys\[1\]: .* 64 hex digits"),
        ("sha256:" + "0" * 63, "64 hex digits"),
        ("sha256:" + "0" * 65, "64 hex digits"),
        ("sha256:" + "x" * 64, "64 hex digits"),
        ("topsecret key", "space or control"),
        ("topsecret\n", "space or control"),
    ],
)
def test_an_entry_that_is_no_key_is_said_without_it(entry: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        Keys.load(ServerSettings(api_keys=(SecretStr("good"), SecretStr(entry))))
    assert "topsecret" not in str(caught.value)
    assert "0000" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# nothing\n\n", "holds no key"),
        (b"good\nsha256:topsecret\n", "line 2: .* 64 hex digits"),
        (b"topsecret two\n", "line 1: .* space"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "can't be read: No such file"),
    ],
)
def test_a_file_that_holds_no_keys_is_said(tmp_path: Path, content: bytes | None, message: str):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Keys.load(ServerSettings(api_keys_file=file))
    assert "topsecret" not in str(caught.value)


def test_a_share_for_each_key_needs_keys():
    with pytest.raises(ConfigError, match="max_per_key has no effect without"):
        Keys.load(ServerSettings(max_per_key=3))


def test_what_is_kept_of_a_key_is_not_the_key():
    keys = Keys.load(ServerSettings(api_keys=(SecretStr(PLAIN),)))
    assert keys.identify(PLAIN.encode()) == hashlib.sha256(PLAIN.encode()).hexdigest()[:12]
    assert PLAIN not in repr(vars(keys))


def test_files_are_looked_up_beside_the_configuration(tmp_path: Path):
    config = tmp_path / "here.yaml"
    config.write_text(LIMITS.read_text() + "  api_keys_file: keys.txt\n  ssl_certfile: a/b.pem\n")
    settings = load(config).server
    assert settings.api_keys_file == tmp_path / "keys.txt"
    assert settings.ssl_certfile == tmp_path / "a" / "b.pem"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("API_KEYS", '["sha256:beef"]', "64 hex digits"),
        ("API_KEYS_FILE", "/nowhere/keys", "can't be read"),
        ("MAX_PER_KEY", "2", "has no effect without API keys"),
        ("SSL_CERTFILE", "/nowhere/cert.pem", "there is no file /nowhere/cert.pem"),
        ("SSL_CERTFILE", str(LIMITS), "can't be used"),
        ("SSL_KEYFILE", str(LIMITS), "no effect without server.ssl_certfile"),
    ],
)
def test_wrong_settings_end_it_before_anything_is_loaded(name: str, value: str, message: str):
    for command in (["serve", "--config"], ["check-config"]):
        done = CliRunner().invoke(
            app, [*command, str(LIMITS)], env={f"NUDGE_SERVER__{name}": value, "COLUMNS": "400"}
        )
        assert done.exit_code == (2 if command[0] == "serve" else 1)
        assert message in done.output
        assert "loading" not in done.output
        assert "beef" not in done.output


# -- certificates ----------------------------------------------------------------------------------


def test_with_a_certificate_it_speaks_https(certificate: tuple[Path, Path]):
    cert, key = certificate
    env = {
        "NUDGE_SERVER__SSL_CERTFILE": str(cert),
        "NUDGE_SERVER__SSL_KEYFILE": str(key),
        "NUDGE_SERVER__SSL_KEYFILE_PASSWORD": "word",
    }
    server = serve("--config", str(LIMITS), env=env)
    try:
        found = re.search(r"ready in .* on (https://\S+)/v1 ", server.output)
        assert found, server.output
        assert f"curl {found[1]}/v1/chat/completions" in server.output
        trusted = ssl.create_default_context(cafile=str(cert))
        answer = httpx.post(f"{found[1]}/v1/chat/completions", json=CHAT, verify=trusted)
        assert answer.status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{found[1]}/health")  # nobody vouches for it
    finally:
        assert server.stop() == 0


def test_an_encrypted_key_without_its_password_is_said_and_not_asked_for(
    certificate: tuple[Path, Path],
):
    cert, key = certificate
    env = {"NUDGE_SERVER__SSL_CERTFILE": str(cert), "NUDGE_SERVER__SSL_KEYFILE": str(key)}
    done = CliRunner().invoke(app, ["serve", "--config", str(LIMITS)], env=env)
    assert done.exit_code == 2
    assert "ssl_keyfile_password" in done.output
