"""What a configuration may say of an engine elsewhere."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from server import config
from server.core import ConfigError
from server.doctor import settings as checks
from server.engines.remote.backend import RemoteSettings


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "set url"),
        ({"url": "http://a", "urls": ["http://b"]}, "set url"),
        ({"url": "ftp://a"}, "begins with http"),
        ({"url": "http://me:secret@a"}, "is logged"),
        ({"url": "http://a?key=1"}, "no query"),
        ({"urls": ["http://a", "http://a/v1/"]}, "twice"),
        ({"url": "http://a", "api_key": "k", "api_key_file": "f"}, "not both"),
        ({"url": "http://a", "gpu_memory_utilization": 0.5}, "gpu_memory_utilization"),
    ],
)
def test_what_cannot_be_is_refused(wrong, told):
    with pytest.raises(ValidationError, match=told):
        RemoteSettings(model="m", **wrong)


def test_a_url_is_the_servers_with_and_without_its_version():
    urls = ("http://a/v1", "https://b:8000/engines/", "http://c/v1/")
    found = RemoteSettings(model="m", urls=urls).all_urls
    assert found == ("http://a", "https://b:8000/engines", "http://c")


def test_files_are_beside_the_configuration_and_names_are_names(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()  # of the same name as what is served
    (tmp_path / "tok").mkdir()
    path = tmp_path / "x.yaml"
    path.write_text(
        "engines:\n  base: {backend: remote, model: m, url: http://a, tokenizer: tok,"
        " api_key_file: key, ca_file: ca.pem}\nmodels:\n  x: {base: base, aligned: base}\n"
    )
    engine = config.load(path).engines["base"]
    assert isinstance(engine, RemoteSettings)
    assert engine.model == "m"
    assert engine.tokenizer == str(tmp_path / "tok")
    assert (engine.api_key_file, engine.ca_file) == (
        str(tmp_path / "key"),
        str(tmp_path / "ca.pem"),
    )
    (problem,) = checks.problems(config.load(path))
    assert "api_key_file" in problem
    (tmp_path / "key").write_text(" sk-1 \n")
    assert engine.all_headers() == {"Authorization": "Bearer sk-1"}
    assert checks.problems(config.load(path)) == []


def test_a_key_of_the_environment_is_never_shown(tmp_path, monkeypatch):
    path = tmp_path / "x.yaml"
    path.write_text(
        "engines:\n  base: {backend: remote, model: m, url: http://a}\n"
        "models:\n  x: {base: base, aligned: base}\n"
    )
    monkeypatch.setenv("NUDGE_ENGINES__BASE__API_KEY", "sk-hidden")
    settings = config.load(path)
    assert settings.engines["base"].all_headers() == {"Authorization": "Bearer sk-hidden"}
    assert "sk-hidden" not in f"{settings}{settings.model_dump()}{settings.model_dump_json()}"


def test_a_certificate_that_is_not_there_is_a_mistake_of_the_configuration(tmp_path):
    from server.engines.remote.client import connections

    with pytest.raises(ConfigError, match="ca_file"):
        connections(RemoteSettings(model="m", url="https://a", ca_file=str(tmp_path / "no")))
