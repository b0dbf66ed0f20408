"""``scripts/gpu-check``: part by part, what the tests on a CPU can't tell of a GPU.

    scripts/gpu-check                       all parts that are not done yet
    scripts/gpu-check --parts steps bench   these, done or not
    scripts/gpu-check --report              only write docs/benchmarks/gpu.md of what there is

Needs no network. Each part is a process of its own with a time limit, and leaves a file in
measurements/gpu, so that it can be broken off and gone on with. It runs on a CPU too, where its
times say nothing: to see that it works.

Knows: commands, files, vLLM's settings by name. Does not know: how anything is measured but steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DONE = ROOT / "measurements" / "gpu"
REPORT = ROOT / "docs" / "benchmarks" / "gpu.md"
LIMIT_S = 540

PAIRED = ("base", "aligned", "aligned-1k")
UNSCHEDULED = {f"NUDGE_ENGINES__{name}__ARGS__ASYNC_SCHEDULING": "false" for name in PAIRED}
"""Asynchronous scheduling off, for the engines of tests/pairs.yaml."""


@dataclass(frozen=True)
class Part:
    """what: it is for. command: behind Python; ``{width}`` and ``{layers}`` are of the base model
    that is made. env: beside the environment."""

    what: str
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


def _tests(*args: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-p", "no:cacheprovider", *args)


def _bench(streams: int) -> tuple[str, ...]:
    size = ("--width", "{width}", "--layers", "{layers}", "--ratio", "8", "--dtype", "bfloat16")
    some = ("--streams", str(streams), "--shares", "0.1", "0.3", "--repeats", "1")
    output = ("--output", str(DONE / f"bench-{streams}"))
    return ("-m", "scripts.benchmark", "--pairs", "random", "--no-http", *size, *some, *output)


OWN = ("-m", "scripts.gpu_check")
SAME = (("VLLM_BATCH_INVARIANT", "1"),)
PARTS = {
    "life": Part(
        "start, kill, restart; no engine has the port or a client's connection",
        _tests("tests/e2e/test_engine_death.py"),
    ),
    "memory": Part("what engines take, beside the doctor's plan", (*OWN, "--memory")),
    "contract": Part(
        "the engines' contract, scheduled as vLLM does by default",
        _tests("tests/contract/test_engine.py", "tests/contract/test_resumable.py"),
        SAME,
    ),
    "contract-sync": Part(
        "the same without asynchronous scheduling",
        _tests("tests/contract/test_engine.py", "tests/contract/test_resumable.py"),
        SAME + tuple(UNSCHEDULED.items()),
    ),
    "waits": Part(
        "what waits for the GPU in a step",
        (*OWN, "--waits"),
        (
            ("VLLM_GPU_SYNC_CHECK", "warn"),
            ("VLLM_LOGGING_LEVEL", "INFO"),
            ("PYTHONWARNINGS", "default"),
        ),
    ),
    "steps": Part("a step's time, with the processor and without", (*OWN, "--steps")),
    "bench": Part("nudged answers beside the base alone, 1 stream", _bench(1)),
    "bench-16": Part("the same, 16 streams", _bench(16)),
    "bench-64": Part("the same, 64 streams", _bench(64)),
    "bench-64-mps": Part("the same with MPS", _bench(64), (("NUDGE_MPS", "1"),)),
}


@contextmanager
def _mps(wanted: bool) -> Iterator[dict[str, str]]:
    """NVIDIA's Multi-Process Service for the processes of one part, where it is wanted."""
    if not wanted:
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        env = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        control = ["nvidia-cuda-mps-control"]
        subprocess.run([*control, "-d"], env=os.environ | env, check=True)
        try:
            yield env
        finally:
            subprocess.run(control, env=os.environ | env, input="quit\n", text=True, check=False)


def do(name: str, width: int, layers: int) -> dict[str, Any]:
    """One part, in a process of its own. What it says last in a line of JSON is what it found."""
    part, began = PARTS[name], time.monotonic()
    command = [each.format(width=width, layers=layers) for each in part.command]
    env = os.environ | dict(part.env) | {"NUDGE_GPU_SIZE": f"{width} {layers}"}
    try:
        with _mps("NUDGE_MPS" in dict(part.env)) as more:
            ran = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=env | more,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
            )
        said, code = ran.stdout, ran.returncode
    except subprocess.TimeoutExpired as late:
        said, code = (late.stdout or b"").decode("utf-8", "replace"), 124
    except OSError as error:
        said, code = str(error), 127
    found = re.findall(r"^(\{.*\})$", said, re.M)
    return {
        "part": name,
        "what": part.what,
        "code": code,
        "seconds": round(time.monotonic() - began),
        "found": json.loads(found[-1]) if found else None,
        "said": said[-4000:],
    }


# -- parts of its own ----------------------------------------------------------------------------


async def _engine(folder: Path, **args: Any) -> Any:
    from scripts.benchmark import pairs
    from server.engines.vllm.engine import VllmEngine

    width, layers = map(int, os.environ["NUDGE_GPU_SIZE"].split())
    if not (folder / "base").exists():
        pairs.random(folder, width, layers, 8)
    own = {"model": str(folder / "base"), "max_model_len": 1024, "max_num_seqs": 64}
    return await VllmEngine.start("base", {**own, "kv_cache_memory_bytes": 2**30, **args})


async def _step_ms(engine: Any, rows: int, steps: int, **ends: Any) -> float:
    """The median of three, of a batch of so many rows."""
    from server.core import SamplingParams
    from server.engines.base import TurnParams, collect

    params = TurnParams(SamplingParams(temperature=0), max_tokens=steps, top=1, **ends)

    async def one(row: int) -> int:
        session = engine.open([5 + row, 7, 11])
        await collect(session, params)
        taken: int = session.steps
        await session.aclose()
        return taken

    found = []
    for _ in range(3):
        began = time.perf_counter()
        taken = await asyncio.gather(*(one(row) for row in range(rows)))
        found.append(1000 * (time.perf_counter() - began) / max(taken))
    return statistics.median(found)


async def steps() -> dict[str, Any]:
    """Milliseconds a step, by scheduling, rows, and what the processor does: nothing, or p1."""
    table: dict[str, dict[str, float]] = {}
    count = int(os.environ.get("NUDGE_GPU_STEPS", "200"))
    with tempfile.TemporaryDirectory() as folder:
        for scheduling in (None, False):
            own = {} if scheduling is None else {"async_scheduling": scheduling}
            engine = await _engine(Path(folder), **own)
            try:
                ahead = "asynchronous" if engine._core.ahead else "synchronous"
                for rows in (1, 16, 64):
                    table[f"{ahead}, {rows} rows"] = {
                        "off": await _step_ms(engine, rows, count),
                        "on": await _step_ms(engine, rows, count, stop_below=0.0),
                    }
            finally:
                await engine.aclose()
    return table


async def waits() -> dict[str, Any]:
    """Runs what would be warned of. The warnings are in what the part says."""
    with tempfile.TemporaryDirectory() as folder:
        engine = await _engine(Path(folder))
        try:
            for ends in ({"stop_below": 0.0}, {"word": ()}):
                await _step_ms(engine, 4, 20, **ends)
        finally:
            await engine.aclose()
    return {"see": "lines that name server/engines/vllm"}


async def memory() -> dict[str, Any]:
    """Bytes of each device before and while the demo pair's engines run, beside the plan."""
    from server import config, doctor
    from server.engines import machine
    from server.serving.registry import Registry

    settings = config.load(ROOT / "configs" / "demo.yaml")
    before = machine.look()
    plan = doctor.examine(settings, before)
    registry = Registry(settings)
    await registry.start()
    try:
        after = machine.look()
        found: dict[str, Any] = {}
        for device in ("cpu", *after.gpus):
            was, now = before.memory(device), after.memory(device)
            if was and now and was.free is not None and now.free is not None:
                found[device] = {"taken": was.free - now.free}
        for device_plan in plan.devices:
            found[f"plan of {device_plan.name}"] = {
                each.name: (each.weights or 0) + (each.cache or 0) + each.allowance
                for each in device_plan.tenants
            }
        return found
    finally:
        await registry.aclose()


# -- the whole -----------------------------------------------------------------------------------


def results() -> list[dict[str, Any]]:
    files = {path.stem: path for path in DONE.glob("*.json")}
    return [json.loads(files[name].read_text("utf-8")) for name in PARTS if name in files]


def report(on: str) -> str:
    lines = ["# What was seen on a GPU", "", f"By `scripts/gpu-check`, on {on}.", ""]
    lines += ["| part | what | outcome | s |", "|---|---|---|---|"]
    for each in results():
        outcome = "done" if each["code"] == 0 else f"failed ({each['code']})"
        lines.append(f"| {each['part']} | {each['what']} | {outcome} | {each['seconds']} |")
    for each in results():
        if each["found"]:
            told = json.dumps(each["found"], indent=1)
            lines += ["", f"## {each['part']}", "", "```json", told, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, help="these, also where they are done")
    add("--width", type=int, default=2048, help="hidden size of the base model that is made")
    add("--layers", type=int, default=24, help="its layers (2048 × 24: 2.4 GB in bfloat16)")
    add("--report", action="store_true", help=f"write {REPORT.relative_to(ROOT)}")
    for own in ("steps", "waits", "memory"):
        add(f"--{own}", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for own in (steps, waits, memory):
        if getattr(args, own.__name__):
            print(json.dumps(asyncio.run(own())))
            return
    DONE.mkdir(parents=True, exist_ok=True)
    if not args.report:
        for name in args.parts or [each for each in PARTS if not (DONE / f"{each}.json").exists()]:
            print(f"{name}: {PARTS[name].what} …", flush=True)
            done = do(name, args.width, args.layers)
            (DONE / f"{name}.json").write_text(json.dumps(done, indent=1), "utf-8")
            print(
                f"  {'done' if done['code'] == 0 else 'FAILED'} in {done['seconds']} s", flush=True
            )
        return
    from server.engines.vllm.starting import hardware

    REPORT.write_text(report(hardware()), "utf-8")
    print(f"wrote {REPORT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
