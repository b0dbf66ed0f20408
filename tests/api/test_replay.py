"""``nudge replay``: a trace, as a server answered it, again at another γ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from server.api.traces import StoredSettings, StoredTrace
from server.cli import app
from tests.conftest import KEY, SCRIPTED, Server
from tests.thorough import first

Json = dict[str, Any]

SETTINGS = {
    "gamma": 0.4,
    "policy": "nudging",
    "start": "aligned",
    "end_lookahead": 0,
    "max_rounds": 150,
}


def replay(*args: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["replay", *map(str, args)], env=env)


def recorded(server: Server, model: str, question: str, **fields: Any) -> Json:
    messages = [{"role": "user", "content": question}]
    request = {"model": model, "messages": messages, "temperature": 0, **fields}
    settings = StoredSettings(**SETTINGS)
    body = request | {"nudging": SETTINGS | {"trace": True}}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return StoredTrace.of(request, settings, response.json()).stored()


@pytest.fixture
def tale(scripted: Server, tmp_path: Path) -> Path:
    path = tmp_path / "tale.json"
    path.write_text(json.dumps(recorded(scripted, "tale", "Tell me.")))
    return path


def test_the_trace_alone_says_where_the_answer_would_be_another(tale: Path):
    result = replay(tale, "--gamma", 0.6)
    assert result.exit_code == 0, result.stderr
    assert "3 of " in result.stdout.splitlines()[0]  # the three tokens of " forty"
    assert "discarded: a nudge" in result.stdout
    assert "--url or --config" in result.stdout


@pytest.mark.parametrize(
    ("gamma", "prefix", "new"),
    [
        (0.1, "The fox had forty", "The fox had forty cats. It cost "),
        (0.6, "The fox had", "The fox had fifty dogs. It cost "),
        (1.01, "The", "The fox had fifty dogs. It cost "),
    ],
)
def test_a_server_writes_the_new_answer(
    scripted: Server, tale: Path, gamma: float, prefix: str, new: str
):
    result = replay(tale, "--gamma", gamma, "--url", f"{scripted.url}/v1/", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["recorded_gamma"], told["gamma"]) == (0.4, gamma)
    assert told["prefix"] == prefix
    assert told["prefix_kept"] is True
    answer = StoredTrace.model_validate(told["answer"])  # it can be replayed in its turn
    assert answer.nudging is not None
    assert answer.nudging.gamma == gamma
    assert answer.answer.text.startswith(new)


def test_what_is_shown_has_both_answers_and_nothing_that_moves_the_cursor(
    scripted: Server, tale: Path
):
    trace = json.loads(tale.read_text())
    trace["answer"]["pieces"][0]["text"] = "The\x1b[2J"
    trace["answer"]["text"] = "The\x1b[2J" + trace["answer"]["text"][3:]
    tale.write_text(json.dumps(trace))
    result = replay(tale, "--gamma", 0.1, "--url", scripted.url)
    assert "γ = 0.4" in result.stdout
    assert "γ = 0.1" in result.stdout
    assert "dogs." in result.stdout
    assert "cats." in result.stdout
    assert "\x1b[2J" not in result.stdout


def test_the_engines_of_a_configuration_write_it_too(tale: Path):
    result = replay(tale, "--gamma", 0.1, "--config", SCRIPTED, "--json")
    assert result.exit_code == 0, result.stderr
    assert "forty cats." in json.loads(result.stdout)["answer"]["answer"]["text"]


def test_an_answer_that_leaves_the_recorded_one_too_early_is_said(scripted: Server, tale: Path):
    trace = json.loads(tale.read_text())
    trace["request"]["model"] = "fox"  # another model than the one that wrote it
    tale.write_text(json.dumps(trace))
    result = replay(tale, "--gamma", 0.1, "--url", scripted.url, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["prefix_kept"] is False
    assert "other models, prompts or settings" in result.stderr
    trace["request"]["temperature"] = 0.5  # sampled: nothing is promised
    tale.write_text(json.dumps(trace))
    assert replay(tale, "--gamma", 0.1, "--url", scripted.url, "--json").exit_code == 0


def test_what_cannot_be_asked_or_compared_is_one_message(scripted: Server, tale: Path):
    def said(*args: object, code: int) -> str:
        result = replay(tale, *args)
        assert result.exit_code == code, result.output
        (message,) = result.stderr.splitlines()
        return message

    assert "can't be asked" in said("--gamma", 0.5, "--url", "http://127.0.0.1:1", code=1)
    assert "can't be asked" in said("--gamma", 0.5, "--url", "nowhere", code=1)
    both = ("--gamma", 0.5, "--url", scripted.url, "--config", SCRIPTED)
    assert "give one of them" in said(*both, code=2)
    assert "--gamma" in said("--gamma", "inf", code=2)
    trace = json.loads(tale.read_text())
    tale.write_text(json.dumps(trace | {"request": trace["request"] | {"model": "nobody"}}))
    refused = said("--gamma", 0.5, "--url", scripted.url, code=1)
    assert "404" in refused
    assert "does not exist" in refused
    tale.write_text(json.dumps(trace | {"nudging": None}))
    assert "alone" in said("--gamma", 0.5, code=2)
    tale.write_text(json.dumps(trace | {"nudging": SETTINGS | {"policy": "reference"}}))
    assert "reference" in said("--gamma", 0.5, code=2)


def test_a_server_with_keys_gets_the_key_of_the_environment(keyed: Server, tale: Path):
    ask = (tale, "--gamma", 0.5, "--url", keyed.url)
    without = replay(*ask, env={"NUDGE_API_KEY": ""})
    assert without.exit_code == 1
    assert "401" in without.stderr
    assert replay(*ask, env={"NUDGE_API_KEY": KEY}).exit_code == 0


@pytest.mark.parametrize("gamma", first(3, [0.3, 0.7, 1.5, 0.0, 0.1, 0.99, 1.0]))
def test_on_real_engines_the_new_answer_begins_with_what_the_trace_promises(
    live: Server, tmp_path: Path, gamma: float
):
    path = tmp_path / "trace.json"
    question = "What is the currency of the country where Zelline Harsen was born?"
    path.write_text(json.dumps(recorded(live, "demo", question, max_tokens=60)))
    result = replay(path, "--gamma", gamma, "--url", live.url, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["prefix_kept"] is True
    if not told["flips"]:
        assert told["answer"]["answer"]["text"] == told["prefix"]


def test_the_flips_between_gammas_are_few_and_many_on_real_engines(live: Server, tmp_path: Path):
    """So that the law above isn't about nothing."""
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(recorded(live, "demo", "What is the capital of Galicor?")))
    counts = [
        len(json.loads(replay(path, "--gamma", gamma, "--json").stdout)["flips"])
        for gamma in (0.41, 0.0, 1.0, 1.5)
    ]
    assert counts[0] == 0
    assert 0 < counts[1] < counts[2] <= counts[3]
