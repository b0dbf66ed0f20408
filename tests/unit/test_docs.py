"""The documents: no link leads nowhere, no page is forgotten, what can be set is written down."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.main import get_command

from server import config
from server.cli import app
from server.engines.backends import BACKENDS
from tests.conftest import ROOT

FOLDERS = ("configs", "docker", "docs", "models", "scripts", "server")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(each for top in FOLDERS for each in (ROOT / top).rglob("*.md"))]
)

_FENCE = re.compile(r"^( *)(```+).*?^\1\2`*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|(?:src|href)=\"([^\"]+)\"")


def links(page: Path) -> Iterator[str]:
    """Relative ones, to files and to headings."""
    text = _CODE.sub("", _FENCE.sub("", page.read_text("utf-8")))
    for found in _LINK.finditer(text):
        target = found[1] or found[2]
        if not re.match(r"[a-z]+:", target):
            yield target


@cache
def anchors(page: Path) -> frozenset[str]:
    """Of its headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    found = []
    for heading in re.findall(r"^#+ +(.*?) *#*$", _FENCE.sub("", page.read_text("utf-8")), re.M):
        text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.append(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return frozenset(found)


def broken(page: Path) -> list[str]:
    found = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or ROOT not in (target, *target.parents):
            found.append(f"{link}: no such file")
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            found.append(f"{link}: no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path):
    assert broken(page) == []


def test_links_that_lead_nowhere_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "there.md").write_text(
        "# `A.B` of *γ* …\n## Twice\n## Twice\n```\n# no heading\n```\n"
    )
    (tmp_path / "page.md").write_text(
        "# Here\n[a](there.md#ab-of-γ-) [b](there.md#twice-1) [c](#here) `[d](no.md)` "
        "[e](https://example.org/no)\n```sh\n[f](no.md)\n```\n"
        "[g](no.md) ![h](no.png) [i](there.md#twice-2) [j](#there) [k](there.md#no-heading) "
        '<img src="no.svg"> [l](../)\n'
    )
    assert [each.partition(":")[0] for each in broken(tmp_path / "page.md")] == [
        "no.md", "no.png", "there.md#twice-2", "#there", "there.md#no-heading", "no.svg", "../"
    ]  # fmt: skip


def test_every_page_can_be_reached_from_the_readme():
    reached, coming = set(), [ROOT / "README.md"]
    while coming:
        page = coming.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = (link.partition("#")[0] for link in links(page))
        coming += [(page.parent / target).resolve() for target in targets if target]
    assert set(PAGES) - reached == set()


# -- what can be set, run and read -----------------------------------------------------------------

CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text("utf-8")


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.mark.parametrize(
    "key",
    sorted(
        {
            key
            for section in (
                *(row.settings for row in BACKENDS.values()),
                config.ModelSettings,
                config.ServerSettings,
            )
            for key in settings(section)
        }
    ),
)
def test_every_setting_is_in_the_documents_tables(key: str):
    rows = [line.split("|")[1] for line in CONFIGURATION.splitlines() if line.startswith("| `")]
    section, _, name = key.rpartition(".")
    spellings = [f"`{key}`", f"`.{name}`" if section else f"`{name}`"]
    assert any(spelling in row for row in rows for spelling in spellings), key


@pytest.mark.parametrize("name", get_command(app).commands)
def test_every_command_is_in_the_readme(name: str):
    assert f"| `nudge {name} " in (ROOT / "README.md").read_text("utf-8")


def test_every_shipped_configuration_is_in_the_table():
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"| `{path.name}` |" in CONFIGURATION, path.name


def test_every_room_is_in_the_table_of_the_architecture():
    table = (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("## The life of")[0]
    for path in (ROOT / "server").iterdir():
        if not path.name.startswith("__"):
            name = f"{path.name}/" if path.is_dir() else path.name
            assert f"| `{name}` |" in table, name
