"""Each row of the table of policies, over HTTP: what its card shows is what a request meets, and
what a trace of it is."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from server.api.traces import StoredSettings, StoredTrace
from server.core import NudgingConfig
from server.policies import POLICIES, PolicySpec
from tests.conftest import ROOT, Server

Json = dict[str, Any]

ROWS = pytest.mark.parametrize("spec", POLICIES.values(), ids=POLICIES)
SETTINGS: Json = {
    "gamma": 0.3,
    "entropy": 1.5,
    "start": "base",
    "end_lookahead": 2,
    "end_check": "off",
    "max_rounds": 3,
}
FIELDS: Json = {
    "temperature": 0.5,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "repetition_penalty": 1.5,
    "thinking_token_budget": 9,
    "logit_bias": {"5": 1},
    "response_format": {"type": "json_object"},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "min_tokens": 2,
    "ignore_eos": True,
    "stop_token_ids": [5],
    "logprobs": True,
    "top_p": 0.5,
    "seed": 1,
}
SCRIPTS = ROOT / "server" / "api" / "playground" / "static"


def ask(server: Server, spec: PolicySpec, model: str = "fox", **more: Any) -> httpx.Response:
    nudging = {"policy": spec.name, **more.pop("nudging", {})}
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    url = f"{server.url}/v1/chat/completions"
    return httpx.post(url, json=body | {"nudging": nudging} | more, timeout=60)


def param(response: httpx.Response) -> str:
    assert response.status_code == 400, response.text
    return str(response.json()["error"]["param"])


def cards(server: Server) -> dict[str, Json]:
    return {card["id"]: card for card in httpx.get(f"{server.url}/v1/models").json()["data"]}


def test_a_card_shows_the_policies_that_may_be_asked_for(scripted: Server):
    shown = cards(scripted)
    assert list(shown["fox"]["policies"]) == list(POLICIES)
    assert list(shown["cross"]["policies"]) == ["nudging", "entropy", "reference"]
    assert list(shown["slow"]["policies"]) == ["nudging"]
    assert "policies" not in shown["fox:base"]
    for name, policy in shown["fox"]["policies"].items():
        spec = POLICIES[name]
        threshold = spec.threshold and spec.threshold.setting
        assert policy == {
            "settings": list(spec.settings),
            "threshold": threshold,
            "trace": spec.trace,
        }


@ROWS
def test_what_may_not_be_asked_for_is_a_400_that_says_what_may(scripted: Server, spec: PolicySpec):
    response = ask(scripted, spec, "slow", max_tokens=1)
    if spec.name == "nudging":
        assert response.status_code == 200
        return
    assert param(response) == "nudging.policy"
    message = response.json()["error"]["message"]
    assert "'slow' allows nudging (models.slow.policies" in message


@ROWS
def test_a_setting_is_accepted_where_the_card_has_it(scripted: Server, spec: PolicySpec):
    known = cards(scripted)["fox"]["policies"][spec.name]["settings"]
    assert SETTINGS.keys() == {field.name for field in fields(NudgingConfig)} - {"policy"}
    for name, value in SETTINGS.items():
        response = ask(scripted, spec, nudging={name: value})
        if name in known:
            assert response.status_code == 200, response.text
        else:
            assert param(response) == f"nudging.{name}"


@ROWS
def test_a_field_is_refused_where_the_row_says_so(scripted: Server, spec: PolicySpec):
    assert set(spec.refuses) <= FIELDS.keys()
    for name, value in FIELDS.items():
        response = ask(scripted, spec, **{name: value})
        if name in spec.refuses:
            assert param(response) == name
        elif name == "thinking_token_budget":
            assert "no thoughts" in response.text  # in any answer of this pair
        else:
            assert response.status_code == 200, (name, response.text)


# -- traces ---------------------------------------------------------------------------------------


def recorded(server: Server, spec: PolicySpec) -> Json:
    """A trace as the page stores it, of an answer to its end."""
    request = {"model": "fox", "messages": [{"role": "user", "content": "x"}], "temperature": 0}
    settings = StoredSettings(**{**cards(server)["fox"]["nudging"], "policy": spec.name})
    response = ask(server, spec, nudging={"trace": True}, max_tokens=None, temperature=0)
    assert response.status_code == 200, response.text
    return StoredTrace.of(request, settings, response.json()).stored()


def of_page(folder: Path, script: str, **given: Any) -> Any:
    """What a function of the page's ``trace.js`` makes of what it is given."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node to run the page's script")
    for script_file in SCRIPTS.glob("*.js"):
        shutil.copy(script_file, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    path = folder / "run.mjs"
    path.write_text(
        'import * as page from "./trace.js";\n'
        f"const given = {json.dumps(given)};\n"
        f"console.log(JSON.stringify({script}));\n"
    )
    run = subprocess.run([node, str(path)], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


PARSED = """given.traces.map((trace) => {
  try { return page.parse(JSON.stringify(trace), given.policies).policy.trace; }
  catch (error) { return error.message; }
})"""
"""The kinds of traces, or why the page takes them for damaged."""


def variants(trace: Json) -> dict[str, Json]:
    """The trace, and what may or may not be wrong with one."""

    def changed(**answer: Any) -> Json:
        return {**trace, "answer": {**trace["answer"], **answer}}

    pieces = trace["answer"]["pieces"]
    doubtful = [
        {**piece, "top_prob": 0.01} if piece["speaker"] == "base" else piece for piece in pieces
    ]
    rejected = [
        {**piece, "rejected": {"text": "x", "top_prob": 0.99}}
        if piece["speaker"] == "aligned"
        else piece
        for piece in pieces
    ]
    return {
        "as it is": trace,
        "another text": changed(text=trace["answer"]["text"] + "!"),
        "p1 under gamma": changed(pieces=doubtful),
        "a nudge over gamma": changed(pieces=rejected),
        "one model's usage": {
            **trace,
            "usage": {key: value for key, value in trace["usage"].items() if key != "nudging"},
        },
    }


FITS = {
    "decisions": ["as it is", "a nudge over gamma"],
    "pieces": ["as it is", "p1 under gamma", "a nudge over gamma"],
    "rounds": ["as it is", "another text", "p1 under gamma", "a nudge over gamma"],
}


def taken(trace: Json) -> bool:
    try:
        StoredTrace.model_validate(trace)
    except ValidationError:
        return False
    return True


@ROWS
def test_a_stored_trace_is_what_its_kind_says(scripted: Server, spec: PolicySpec):
    trace = recorded(scripted, spec)
    assert StoredTrace.model_validate(trace).stored() == trace
    fits = [name for name, each in variants(trace).items() if taken(each)]
    assert fits == FITS[spec.trace]
    why = StoredTrace.model_validate(trace).not_comparable
    assert (why is None) == (spec.trace == "decisions")
    assert why is None or spec.name in why


@ROWS
def test_the_page_takes_the_traces_that_the_server_takes(
    scripted: Server, spec: PolicySpec, tmp_path: Path
):
    shown = cards(scripted)["fox"]["policies"]
    each = variants(recorded(scripted, spec))
    told = of_page(tmp_path, PARSED, traces=list(each.values()), policies=shown)
    fits = [name for name, kind in zip(each, told, strict=True) if kind == spec.trace]
    assert fits == FITS[spec.trace]
    # Of a policy that no card has it looks whether the pieces join, and supposes nothing more.
    told = of_page(tmp_path, PARSED, traces=list(each.values()), policies={})
    assert told[0] in ("pieces", "rounds")
    assert told[1] == "rounds"


@ROWS
def test_the_page_sends_what_the_server_takes(scripted: Server, spec: PolicySpec, tmp_path: Path):
    card = cards(scripted)["fox"]
    nudging = {**card["nudging"], "policy": spec.name}
    script = "page.effective(page.newRecord({}, given.nudging, given.policy))"
    sent = of_page(tmp_path, script, nudging=nudging, policy=card["policies"][spec.name])
    assert sent.keys() == {"policy", *spec.settings}
    response = ask(scripted, spec, nudging=sent)
    assert response.status_code == 200, response.text


@ROWS
def test_a_comparable_trace_is_asked_again_with_what_has_an_effect(
    scripted: Server, spec: PolicySpec
):
    trace = StoredTrace.model_validate(recorded(scripted, spec))
    body, _ = trace.asked_again(0.2)
    assert body["nudging"].keys() == {"policy", "trace", *spec.settings}
    response = httpx.post(f"{scripted.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
