"""The Grafana dashboard asks for what there is: every query parses, and names only metrics and
labels that a server shows once it has answered."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import promql_parser as promql
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import config
from server.api.app import create_app
from server.engines.base import Replica
from server.serving.registry import Registry
from tests.conftest import ROOT

DASHBOARD = json.loads((ROOT / "docker" / "grafana" / "nudge.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel, target) for panel in PANELS for target in panel["targets"]]
IDS = [f"{panel['title']}-{target['refId']}" for panel, target in QUERIES]

Shown = dict[str, set[str]]
"""The name of each sample, and the labels that it has."""


@pytest.fixture(scope="module")
async def shown() -> Shown:
    registry = Registry(config.load(ROOT / "tests" / "scripted.yaml"))
    await registry.start()
    # As one of an engine elsewhere.
    base = registry.engines["base"]
    base.servers = {"http://base": Replica(True, 2, 1)}  # type: ignore[attr-defined]
    base.within = lambda session: base  # type: ignore[attr-defined]

    async def nothing() -> None:
        await asyncio.sleep(0)

    app = create_app(registry, start=nothing)
    transport = httpx.ASGITransport(app)
    body = {"model": "fox", "messages": [{"role": "user", "content": "Hi"}]}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        text = (await client.get("/metrics")).text
    await registry.aclose()
    found: Shown = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def parsed(expression: str) -> Any:
    """As Grafana sends it: with its variables replaced."""
    for variable, value in (("$__rate_interval", "1m"), ("$model", ".*")):
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return promql.parse(expression)


def selectors(node: Any) -> Iterator[Any]:
    match node:
        case promql.VectorSelector():
            yield node
        case promql.MatrixSelector():
            yield node.vector_selector
        case promql.Call():
            for each in node.args:
                yield from selectors(each)
        case promql.BinaryExpr():
            yield from selectors(node.lhs)
            yield from selectors(node.rhs)
        case promql.AggregateExpr() | promql.ParenExpr() | promql.UnaryExpr():
            yield from selectors(node.expr)
        case promql.NumberLiteral():
            pass
        case _:
            raise TypeError(f"{node!r}: teach the test what it has inside")


def groupings(node: Any) -> Iterator[tuple[set[str], Any]]:
    """The labels that aggregations keep, each with what is aggregated."""
    if isinstance(node, promql.AggregateExpr):
        yield set(node.modifier.labels if node.modifier else ()), node.expr
    for name in ("expr", "lhs", "rhs"):
        if isinstance(inner := getattr(node, name, None), promql.Expr):
            yield from groupings(inner)
    for each in getattr(node, "args", ()):
        yield from groupings(each)


@pytest.mark.parametrize(("panel", "target"), QUERIES, ids=IDS)
def test_a_query_asks_for_what_is_shown(panel: Any, target: Any, shown: Shown):
    expression = parsed(target["expr"])
    found = list(selectors(expression))
    assert found
    for selector in found:
        assert selector.name in shown, selector.name
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert matched <= shown[selector.name], selector
    kept: set[str] = set()
    for labels, inside in groupings(expression):
        for selector in selectors(inside):
            assert labels <= shown[selector.name], (labels, selector.name)
        kept |= labels
    # A legend names labels that are left after the aggregation.
    named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    if any(True for _ in groupings(expression)):
        assert named <= kept
    else:
        assert all(named <= shown[selector.name] for selector in found)


def test_a_counter_is_asked_for_its_rate():
    for _, target in QUERIES:
        expression = parsed(target["expr"])
        counters = {
            selector.name
            for selector in selectors(expression)
            if selector.name.endswith(("_total", "_bucket", "_count", "_sum"))
        }
        for counter in counters:
            bare = re.sub(r"\b(rate|increase)\([^()]*\)", "", target["expr"])
            assert counter not in bare, target["expr"]


def test_what_this_server_counts_is_on_the_dashboard(shown: Shown):
    asked = {
        selector.name for _, target in QUERIES for selector in selectors(parsed(target["expr"]))
    }
    families = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in shown}
    ours = {name for name in families if name.startswith(("nudge_", "vllm:"))}
    assert ours == {
        re.sub(r"_(bucket|count|sum|total)$", "", name)
        for name in asked
        if not name.startswith("process_")
    }


def test_its_panels_have_their_places():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_its_variable_offers_the_models(shown: Shown):
    (model,) = (each for each in DASHBOARD["templating"]["list"] if each["name"] == "model")
    metric, label = re.fullmatch(r"label_values\((\S+), (\w+)\)", model["definition"]).groups()
    assert label in shown[metric]
    assert model["query"]["query"] == model["definition"]
