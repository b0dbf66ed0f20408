"""The table of policies: everybody who must tell them apart reads it, and nobody else names one."""

from __future__ import annotations

import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from server import config
from server.api.extension import NudgingOptions
from server.api.openai.chat import ChatRequest
from server.api.traces import StoredSettings
from server.config import ModelSettings, NudgingSettings
from server.core import AnswerRequest, ConfigError, InvalidRequest, Message, NudgingConfig
from server.decoding.strategies import MAKERS
from server.evaluation import systems
from server.evaluation.data import EvaluationError
from server.policies import DEFAULT, POLICIES, Policy, PolicySpec
from server.serving.registry import Registry
from tests.conftest import ROOT

SERVER = ROOT / "server"
ROWS = pytest.mark.parametrize("spec", POLICIES.values(), ids=POLICIES)
SETTINGS = {field.name for field in fields(NudgingConfig)}


def test_every_name_has_a_row_and_something_that_writes_by_it():
    assert list(POLICIES) == list(get_args(Policy))
    assert MAKERS.keys() == POLICIES.keys()
    assert len({spec.system for spec in POLICIES.values()}) == len(POLICIES)


@pytest.mark.parametrize("model", [NudgingSettings, NudgingOptions, StoredSettings])
def test_a_setting_can_be_set_asked_stored_and_shown(model: type[BaseModel]):
    assert set(model.model_fields) - {"trace"} == SETTINGS
    assert NudgingSettings().config() == NudgingConfig()


def test_an_older_trace_lacks_what_was_unknown_once_and_nothing_else():
    whole = asdict(NudgingConfig())
    older = {name: whole[name] for name in whole.keys() - {"entropy", "end_check"}}
    assert StoredSettings(**older).end_check == "off"
    for name in older:
        with pytest.raises(ValidationError, match=f"{name} missing"):
            StoredSettings(**{key: value for key, value in whole.items() if key != name})


@ROWS
def test_a_row_speaks_of_settings_and_fields_that_there_are(spec: PolicySpec):
    assert {"policy"} | set(spec.settings) <= SETTINGS
    assert set(spec.refuses) <= set(ChatRequest.model_fields)
    assert bool(spec.refuses) == bool(spec.why)
    assert spec.threshold is None or spec.threshold.setting in spec.settings
    assert set(spec.engines) <= set(ModelSettings.model_fields)


HOMES = {
    "policies.py",
    "decoding/strategies.py",
    "decoding/entropy.py",
    "decoding/reference.py",
    "decoding/mixtures.py",
    "decoding/alone.py",
    "decoding/nudged.py",
}
SPELLED = re.compile(
    r"""["'`](reference|ensemble|proxy_tuning)["'`]|polic[^\n]{0,20}["'`](nudging|entropy)["'`]"""
)


def test_no_other_file_names_a_policy():
    files = [path for kind in ("py", "js", "html") for path in SERVER.rglob(f"*.{kind}")]
    assert len(files) > 90
    found = {
        f"{path.relative_to(SERVER)}: {hit[0]}"
        for path in files
        if str(path.relative_to(SERVER)) not in HOMES
        for hit in SPELLED.finditer(path.read_text("utf-8"))
    }
    assert found == set()


@ROWS
def test_the_documents_have_a_section_on_it(spec: PolicySpec):
    headings = re.findall(
        r"^## .*$", (ROOT / "docs" / "policies.md").read_text("utf-8"), re.MULTILINE
    )
    assert any(f"`{spec.name}`" in heading for heading in headings)


# -- the configuration ----------------------------------------------------------------------------

CONFIG = """\
engines:
  big: {backend: scripted, model: b}
  small: {backend: scripted, model: a}
models:
  pair: {base: big, aligned: small, SETTINGS}
"""


def load(folder: Path, settings: str) -> ModelSettings:
    path = folder / "nudge.yaml"
    path.write_text(CONFIG.replace("SETTINGS", settings))
    return config.load(path).models["pair"]


@ROWS
def test_a_model_offers_its_own_policy_and_nudging(tmp_path: Path, spec: PolicySpec):
    model = load(tmp_path, f"untuned: small, nudging: {{policy: {spec.name}}}")
    assert list(model.allowed) == list(dict.fromkeys([spec.name, DEFAULT]))
    only = load(tmp_path, f"untuned: small, policies: [], nudging: {{policy: {spec.name}}}")
    assert list(only.allowed) == [spec.name]


@pytest.mark.parametrize("where", ["policies: [{}]", "nudging: {{policy: {}}}"])
@ROWS
def test_a_policy_that_asks_a_third_engine_needs_one(tmp_path: Path, where: str, spec: PolicySpec):
    settings = where.format(spec.name)
    load(tmp_path, f"untuned: big, {settings}")
    if "untuned" not in spec.engines:
        load(tmp_path, settings)
        return
    with pytest.raises(ConfigError, match=f"models.pair.untuned: the policy '{spec.name}' needs"):
        load(tmp_path, settings)


def test_a_policy_that_there_is_not_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"models.pair.policies.1: .*'reference'"):
        load(tmp_path, "policies: [nudging, magic]")


@pytest.mark.parametrize("setting", ["verify", "eager"])
@ROWS
def test_drafts_are_for_the_policies_that_can_use_them(
    tmp_path: Path, setting: str, spec: PolicySpec
):
    settings = f"untuned: big, nudging: {{policy: {spec.name}}}, {setting}: true"
    if spec.drafts:
        load(tmp_path, settings)
        return
    with pytest.raises(ConfigError, match=f"models.pair.{setting}: it has no effect on the policy"):
        load(tmp_path, settings)


# -- evaluation -----------------------------------------------------------------------------------

MODEL = ModelSettings(base="b", aligned="a", untuned="u")


@ROWS
def test_evaluation_knows_it(spec: PolicySpec):
    (system,) = systems.parse_all(spec.system, MODEL)
    assert system.nudging.policy == spec.name
    if spec.threshold is None:
        assert system.name == spec.system
        with pytest.raises(EvaluationError, match="knows no γ"):
            systems.parse_all(f"{spec.system}@0.3", MODEL)
        return
    (system,) = systems.parse_all(f"{spec.system}@0.30", MODEL)
    assert system.name == f"{spec.system}@0.3"
    assert getattr(system.nudging, spec.threshold.setting) == 0.3
    for wrong in ("x", "-1", "nan", "inf", *(() if spec.threshold.zero else ("0",))):
        with pytest.raises(EvaluationError, match=f"is no {spec.threshold.symbol}"):
            systems.parse_all(f"{spec.system}@{wrong}", MODEL)


@ROWS
def test_calibration_is_refused_where_gamma_has_no_effect(spec: PolicySpec):
    model = MODEL.model_copy(update={"nudging": NudgingSettings(policy=spec.name)})
    if "gamma" in spec.settings:
        assert systems.nudged_at(0.2, model).nudging == NudgingConfig(gamma=0.2)
        return
    with pytest.raises(EvaluationError, match=f"γ has no effect on .* '{spec.name}'"):
        systems.nudged_at(0.2, model)


# -- answers --------------------------------------------------------------------------------------


@ROWS
async def test_what_needs_one_vocabulary_is_refused_where_there_are_two(spec: PolicySpec):
    settings = config.load(ROOT / "tests" / "scripted.yaml")
    cross = settings.models["cross"].model_copy(update={"untuned": "base"})
    only = settings.model_copy(update={"models": {"cross": cross}})
    registry = Registry(only)
    await registry.start()
    served = registry.resolve("cross")
    prompt = registry.prompts(served, [Message("user", "Hi")])
    nudging = NudgingConfig(policy=spec.name)
    if spec.one_vocabulary:
        with pytest.raises(InvalidRequest, match="one vocabulary") as refused:
            registry.writer(served, prompt, AnswerRequest(), nudging)
        assert refused.value.param == "nudging.policy"
    else:
        registry.writer(served, prompt, AnswerRequest(), nudging)
    await registry.aclose()
