"""The parts of ``scripts/gpu-check``, as a table.

Knows: commands, vLLM's settings by name. Does not know: how anything is measured or shown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from server.engines.vllm import build

ROOT = Path(__file__).resolve().parents[2]
DONE = ROOT / "measurements" / "gpu"
BENCHMARKS = DONE / "benchmarks"
"""Where ``scripts.benchmark`` writes its own files: those beside this folder are the parts'."""

SIZE = "NUDGE_GPU_SIZE"
"""Environment variable: the base model's width and layers."""

STEPS = "NUDGE_GPU_STEPS"
"""Environment variable: the steps of a measurement."""

RATIO = 8
"""Weights of the base model over the aligned model's."""


def cache_bytes(width: int, layers: int) -> int:
    """KV cache of 64 answers of some 500 tokens, and of two contexts of 2,048: in 16 bits, keys and
    values, as many heads of either as of queries."""
    return (64 * 512 + 2 * 2048) * 2 * 2 * width * layers


@dataclass(frozen=True)
class Part:
    """what: it is for. command: behind Python; ``{width}`` and ``{layers}`` are of the base model
    that is made, ``{cache_mib}`` what its KV cache then needs. env: beside the environment. rows:
    the file in which it leaves what it found, if that isn't what it says last. names: what it
    finds is the lines that it says this in."""

    what: str
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    rows: Path | None = None
    names: str = ""


OWN = ("-m", "scripts.gpu")
MPS = (("NUDGE_MPS", "1"),)
STARTUP = str(Path(__file__).resolve().parent / "startup")
SAME = (("VLLM_BATCH_INVARIANT", "1"),)


def _tests(*args: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-v", "-p", "no:cacheprovider", *args)


def _contract(scheduled: bool) -> tuple[str, ...]:
    """Requests that are kept hang or get lost in older versions that schedule asynchronously; the
    server doesn't keep any there, but these tests do."""
    found = build.installed()
    kept = not scheduled or (found is not None and build.stops_in_flight(found.version))
    files = ("tests/contract/test_engine.py", "tests/contract/test_resumable.py")
    plugin = () if scheduled else ("-p", "scripts.gpu.unscheduled")
    return _tests(*plugin, *files[: 1 + kept])


def _bench(name: str, what: str, env: tuple[tuple[str, str], ...] = ()) -> Part:
    size = ("--width", "{width}", "--layers", "{layers}", "--ratio", str(RATIO))
    kind = ("--dtype", "bfloat16", "--cache-mib", "{cache_mib}")
    some = ("--streams", "1", "16", "64", "--shares", "0.1", "0.3", "--repeats", "1")
    here = ("--pairs", "random", "--no-http", "--no-elsewhere", "--output", str(BENCHMARKS / name))
    command = ("-m", "scripts.benchmark", *here, *size, *kind, *some)
    return Part(what, command, env, rows=BENCHMARKS / f"{name}.json")


PARTS = {
    "life": Part(
        "start, kill, restart; no engine has the port or a client's connection",
        _tests("tests/e2e/test_engine_death.py"),
    ),
    "memory": Part("what engines take, beside the doctor's plan", (*OWN, "--memory")),
    "contract": Part(
        "the engines' contract, scheduled as vLLM does by default", _contract(True), SAME
    ),
    "contract-sync": Part(
        "the same without asynchronous scheduling",
        _contract(False),
        SAME,
    ),
    "waits": Part(
        "what waits for the GPU in a step",
        (*OWN, "--waits"),
        (
            ("VLLM_GPU_SYNC_CHECK", "warn"),
            ("VLLM_LOGGING_LEVEL", "INFO"),
            ("PYTHONWARNINGS", "default"),
            ("PYTHONPATH", os.pathsep.join([STARTUP, os.environ.get("PYTHONPATH", "")])),
        ),
        names="server/engines/vllm",
    ),
    "steps": Part("a step's time, with the processor and without", (*OWN, "--steps")),
    "handover": Part("from one model's last token to the other's first", (*OWN, "--handover")),
    "handover-mps": Part("the same with MPS", (*OWN, "--handover"), MPS),
    "guide": Part("a guide called in the engine's step, beside two engines", (*OWN, "--guide")),
    "guide-mps": Part("the same with MPS", (*OWN, "--guide"), MPS),
    "contract-one-engine": Part(
        "both models in one engine: the texts of two",
        _tests("tests/contract/test_one_engine.py"),
        (*SAME, ("VLLM_USE_V2_MODEL_RUNNER", "1")),
    ),
    "one-engine": Part(
        "both models in one engine, beside two engines and the base alone",
        (*OWN, "--one-engine"),
        (("VLLM_USE_V2_MODEL_RUNNER", "1"),),
    ),
    "bench": _bench("bench", "nudged answers beside the base alone: 1, 16, 64 streams"),
    "bench-mps": _bench("bench-mps", "the same with MPS", MPS),
}
