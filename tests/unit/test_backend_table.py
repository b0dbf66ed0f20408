"""A backend is one row: who reads the table needs to know nothing else of it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest

from server import config, doctor
from server.cli import measure
from server.core import ConfigError
from server.engines import backends
from server.engines.backend import Backend, EngineSettings, Examined
from server.engines.backends import BACKENDS
from server.engines.machine import Machine, Memory, Tenant
from server.engines.report import Notes
from server.engines.scripted import ScriptedEngine
from server.evaluation.runs import Setup
from server.serving.registry import Registry
from tests.conftest import DEMO, ROOT


class NewSettings(EngineSettings):
    backend: Literal["new"] = "new"
    url: str


async def start(name: str, settings: NewSettings, sharing: int) -> ScriptedEngine:
    engine = ScriptedEngine.from_folder(name, settings.model)
    return ScriptedEngine(
        dataclasses.replace(engine.info, model=f"{settings.url} {sharing}"), engine.distribution
    )


def examine(
    engines: Mapping[str, NewSettings], machine: Machine, length: int, notes: Notes
) -> dict[str, Examined]:
    for name, engine in engines.items():
        notes.fail(f"engines.{name}", f"nobody listens at {engine.url}")
    tenant = Tenant("x", 1, True, 0, 1, length, length, 100, False)
    return {name: Examined(tenants={"9": tenant}) for name in engines}


NEW = Backend(
    NewSettings,
    start,
    examine,
    lambda: "another machine",
    problems=lambda engines: (f"engines.{name}: an odd url" for name in engines),
)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> config.Settings:
    monkeypatch.setitem(BACKENDS, "new", NEW)
    model = str(DEMO / "aligned")
    return config.Settings.model_construct(
        engines={
            "far": NewSettings(model=model, url="http://a"),
            "near": BACKENDS["scripted"].settings(model=model),
            "farther": NewSettings(model=model, url="http://b"),
        },
        models={"pair": config.ModelSettings(base="far", aligned="near")},
        server=config.ServerSettings(),
    )


async def test_its_engines_are_started_by_it(settings: config.Settings):
    registry = Registry(settings)
    await registry.start()
    models = {name: engine.info.model for name, engine in registry.engines.items()}
    assert models["far"] == "http://a 2"
    assert models["farther"] == "http://b 2"
    assert models["near"].startswith("scripted")
    await registry.aclose()


def test_the_doctor_asks_it(settings: config.Settings):
    report = doctor.examine(settings, Machine(None, {"9": Memory(1000)}, Memory(1)), length=50)
    told = [str(each) for each in report.findings if each.level == "error"]
    assert "engines.far: an odd url" in told
    assert "engines.farther: nobody listens at http://b" in told
    (device,) = report.devices
    assert (device.name, device.memory, len(device.tenants)) == ("GPU 9", Memory(1000), 2)


def test_a_report_says_what_it_ran_on(settings: config.Settings):
    assert (
        measure._machine(settings, Setup("pair", max_tokens=1))
        == "another machine, scripted engines"
    )


def test_what_its_engines_cannot_have_together_is_told_with_the_configuration(
    tmp_path, monkeypatch
):
    row = dataclasses.replace(
        BACKENDS["scripted"], conflicts=lambda engines: iter([f"no {' and '.join(engines)}"])
    )
    monkeypatch.setitem(BACKENDS, "scripted", row)
    path = tmp_path / "x.yaml"
    path.write_text(
        "engines:\n  a: {backend: scripted, model: m}\n  b: {device: cpu, model: m}\n"
        "  c: {backend: scripted, model: m}\nmodels:\n  x: {base: a, aligned: b}\n"
    )
    with pytest.raises(ConfigError, match="no a and c"):
        config.load(path)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_row_is_named_by_its_settings(name: str):
    assert backends.of(BACKENDS[name].settings.model_construct(model="m")) is BACKENDS[name]


@pytest.mark.parametrize(
    ("row", "name"),
    [*(("vllm", name) for name in ("start", "examine", "hardware")), ("remote", "start"),
     ("remote", "examine")],
)  # fmt: skip
def test_what_a_row_imports_later_is_there(row: str, name: str):
    """Looked for and not imported: that takes seconds."""
    named = inspect.getclosurevars(getattr(BACKENDS[row], name)).nonlocals
    spec = find_spec(named["module"])
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert named["name"] in [each.name for each in tree.body if isinstance(each, functions)]


def test_no_file_outside_the_engines_tells_backends_apart():
    for path in (ROOT / "server").rglob("*.py"):
        if ROOT / "server" / "engines" in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare):
                asked = [each for each in ast.walk(node) if isinstance(each, ast.Attribute)]
                assert all(each.attr != "backend" for each in asked), f"{path}:{node.lineno}"
