"""What a request's ``model`` may be, before any engine is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import load
from server.serving.catalog import UnknownModel
from server.serving.registry import Registry
from tests.conftest import ROOT

NAMES = Registry(load(ROOT / "tests" / "scripted.yaml"))


def test_a_models_stop_strings_are_of_all_its_names():
    settings = load(ROOT / "tests" / "scripted.yaml")
    settings.models["fox"] = settings.models["fox"].model_copy(update={"stop": ("\nQ:",)})
    served = Registry(settings)
    assert {served.resolve(f"fox{role}").stop for role in ("", *ROLES)} == {("\nQ:",)}
    assert served.resolve("endless").stop == ()


@given(st.decimals(0, 1000, allow_nan=False, places=3))
def test_a_plain_decimal_behind_the_name_is_gamma(number):
    assert NAMES.resolve(f"fox@{number}").nudging.gamma == float(number)


@pytest.mark.parametrize(
    ("name", "gamma"), [("fox@0.3", 0.3), ("fox@.3", 0.3), ("fox@1", 1), ("fox@0", 0)]
)
def test_as_people_write_them(name: str, gamma: float):
    assert NAMES.resolve(name).nudging.gamma == gamma


@pytest.mark.parametrize(
    "gamma",
    [
        *("", " ", "x", "0_3", " 0.3", "0.3 ", "0.3\n", "٣", "0.٣", "\uff11", "1e-1", "1E1"),
        *("+0.3", "-0.3", "-0", "nan", "inf", "Infinity", "0x1", "1.", ".", "0,3", "0.3@0.3"),
        *("0.3.1", "9" * 400),
    ],
)
def test_anything_else_is_no_name(gamma: str):
    """Much of it Python takes for a number."""
    with pytest.raises(UnknownModel):
        NAMES.resolve(f"fox@{gamma}")


def test_the_model_behind_a_name_is_told_without_where_it_lies(tmp_path: Path):
    config = tmp_path / "hub.yaml"
    config.write_text(
        "engines:\n  a: {device: cpu, model: Qwen/Qwen3-4B}\n"
        "  b: {device: cpu, model: ./weights/small}\n"
        f"  c: {{device: cpu, model: {tmp_path}/large/}}\n"
        "models:\n  x: {base: a, aligned: b}\n  y: {base: c, aligned: b}\n"
    )
    registry = Registry(load(config))
    roots = {name: registry.root(registry.resolve(name)) for name in registry.names()}
    assert roots == {
        "x": "Qwen/Qwen3-4B",
        "x:base": "Qwen/Qwen3-4B",
        "x:aligned": "small",
        "y": "large",
        "y:base": "large",
        "y:aligned": "small",
    }


async def test_a_names_context_is_that_of_its_tighter_engine():
    settings = load(ROOT / "tests" / "scripted.yaml")
    settings.engines["base"].args["context_length"] = 900
    registry = Registry(settings)

    def lengths(name: str) -> list[int | None]:
        return [registry.context_length(registry.resolve(name + role)) for role in ROLES]

    assert lengths("fox") == [None] * 3, "unknown while they load"
    await registry.start()
    try:
        assert lengths("fox") == [900, 900, 2048]
        assert lengths("endless") == [100_000] * 3
    finally:
        await registry.aclose()


ROLES = ("", ":base", ":aligned")
