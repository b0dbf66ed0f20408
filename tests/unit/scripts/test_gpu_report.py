"""What ``scripts/gpu-check`` shows of made-up results, and where."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark.report import Row
from scripts.gpu import report
from scripts.gpu.parts import PARTS

GPU = {"cpu": "Xeon", "cores": 16, "gpu": "Card", "gpus": 1, "vllm": "9.1", "torch": "8.2"}
GPU |= {"cuda": "13.0"}
CPU = GPU | {"gpu": None, "gpus": 0, "cuda": None}


def row(system: str, ratio: float, lowest: float, streams: int = 16) -> dict[str, Any]:
    figures = {"tokens_per_s": 1000 * ratio, "nudged_share": 0.12}
    return asdict(Row("random", 0.1, 0.5, streams, system, ratio, lowest, ratio, figures))


ROWS = [row("base alone", 1.0, 1.0), row("two engines", 0.84, 0.8), row("guide", 0.64, 0.64)]
STREAM = {
    "to_base": {
        "handovers": 7,
        "last_ms": 30.0,
        "last_p90_ms": 41.0,
        "end_ms": 20.0,
        "gap_ms": 9.0,
    },
    "to_aligned": {"handovers": 0},
    "base_step_ms": 17.0,
    "aligned_step_ms": 4.0,
}
FOUND: dict[str, Any] = {
    "memory": {"GPU 0": {"taken": 300 * 2**20, "planned": {"base": 2**28, "aligned": 2**26}}},
    "waits": {"lines": ["server/engines/vllm/slots.py:9: waits"]},
    "steps": {
        "engines": {"asynchronous": "V2 model runner"},
        "ms": [{"scheduling": "asynchronous", "rows": 16, "off": 4.0, "on": 5.0}],
    },
    "handover": {"engines": {}, "gamma": 0.2, "streams": {"16": STREAM}},
    "guide": {
        "engines": {},
        "aligned_step_ms": {"1": 3.5, "16": 4.25},
        "waits": [[0.1, 16, 0.815]],
        "rows": ROWS,
    },
    "bench-mps": {"rows": ROWS},
}


def result(part: str, **other: Any) -> report.Result:
    return {
        "part": part,
        "what": PARTS[part].what,
        "code": 0,
        "seconds": 12,
        "date": "2026-01-02",
        "machine": GPU,
        "size": [2048, 24],
        "steps": None,
        "command": "",
        "found": FOUND.get(part),
        "said": "…\n=== 5 passed in 3s ===\n",
        **other,
    }


RESULTS = [result("life"), *map(result, FOUND)]


def cells(page: str, *begin: str) -> list[list[str]]:
    """Of the rows of tables that begin with these cells."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    return [each for each in lines if each[: len(begin)] == list(begin)]


def test_what_was_found_on_a_gpu_is_a_page_of_the_docs_with_a_plot(tmp_path: Path):
    page, plot = report.write(RESULTS, tmp_path)
    assert page == tmp_path / "docs/benchmarks/gpu.md"
    assert plot == tmp_path / "docs/benchmarks/gpu.svg"
    assert plot.read_text("utf-8").count("two engines") >= 1
    told = page.read_text("utf-8")
    assert "2026-01-02, Card × 1, vLLM 9.1, torch 8.2 (CUDA 13.0)." in told
    assert "\nscripts/gpu-check --width 2048 --layers 24\n" in told
    assert "](gpu.svg)" in told
    assert "Not on a GPU" not in told


def test_each_part_has_its_table():
    page = report.markdown(RESULTS, None)
    assert cells(page, "life")[0][2:] == ["5 passed in 3s", "12"]
    assert cells(page, "GPU 0") == [["GPU 0", "300", "320", "base 256, aligned 64"]]
    assert cells(page, "asynchronous") == [["asynchronous", "16", "4.00", "5.00", "**1.25**"]]
    assert cells(page, "16", "base") == [
        ["16", "base", "7", "30.00 (41.00)", "21.00", "**9.00**", "20.00", "17.00", "9.00"]
    ]
    assert cells(page, "16", "aligned") == [["16", "aligned", "0", "", "21.00", "", "", "4.00", ""]]
    assert cells(page, "10%") == [
        ["10%", "16", "82%", "1000", "**0.84** (0.80 to 0.84)", "**0.64**"]
    ]
    assert "3.50 ms with 1, 4.25 ms with 16." in page
    assert cells(page, "random", "10%", "16", "two engines") == [
        ["random", "10%", "16", "two engines", "**0.84** (0.80 to 0.84)", "840", "12%"]
    ]
    assert "server/engines/vllm/slots.py:9: waits" in page
    assert "- asynchronous: V2 model runner" in page


@pytest.mark.parametrize(
    ("code", "told"), [(1, "**failed** (1): no room"), (124, "**out of time**")]
)
def test_of_a_part_that_failed_that_is_all_that_is_shown(code: int, told: str, tmp_path: Path):
    failed = result("guide", code=code, said="…\nno room\n\n")
    page = report.markdown([failed], None)
    assert cells(page, "guide")[0][2] == told
    assert "## " not in page
    assert report.rows([failed]) == []
    assert report.write([failed], tmp_path) == [tmp_path / "docs/benchmarks/gpu.md"]


@pytest.mark.parametrize("others", [[], RESULTS])
def test_a_cpus_times_stay_out_of_the_docs_and_are_told_as_such(
    others: list[report.Result], tmp_path: Path
):
    written = report.write([*others, result("guide", machine=CPU)], tmp_path)
    assert written[0] == tmp_path / "measurements/gpu/report.md"
    assert not (tmp_path / "docs").exists()
    told = written[0].read_text("utf-8")
    assert told.startswith("# What was seen on a CPU\n\n**Not on a GPU.**")
    assert "Xeon, 16 cores, vLLM" in told


def test_without_results_nothing_is_written(tmp_path: Path):
    assert report.write([], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_plot_of_before_does_not_stay_with_a_page_that_has_none(tmp_path: Path):
    _, plot = report.write(RESULTS, tmp_path)
    page, *none = report.write([result("steps")], tmp_path)
    assert (none, plot.exists()) == ([], False)
    assert "svg" not in page.read_text("utf-8")


def test_parts_of_several_machines_say_whose_they_are():
    other = result("steps", machine=GPU | {"gpu": "Other"}, size=[128, 2], steps="20")
    page = report.markdown([result("guide"), other], None)
    assert "- 2026-01-02, Card × 1, vLLM 9.1, torch 8.2 (CUDA 13.0): guide." in page
    assert "- 2026-01-02, Other × 1, vLLM 9.1, torch 8.2 (CUDA 13.0): steps." in page
    assert "scripts/gpu-check --width 2048 --layers 24 --parts guide\n" in page
    assert "NUDGE_GPU_STEPS=20 scripts/gpu-check --width 128 --layers 2 --parts steps\n" in page


def test_what_ran_with_mps_is_a_pair_of_its_own_in_the_plot():
    found = report.rows([result("guide"), result("bench-mps")])
    assert [each.pair for each in found] == ["random"] * 3 + ["random, MPS"] * 3


def test_parts_leave_their_files_and_those_of_the_benchmark_apart():
    files = [part.rows for part in PARTS.values() if part.rows]
    assert len(set(files)) == 2
    for name, part in PARTS.items():
        if part.rows:
            output = part.command[part.command.index("--output") + 1]
            assert Path(output).with_suffix(".json") == part.rows, name
            assert part.rows.parent.name == "benchmarks"
