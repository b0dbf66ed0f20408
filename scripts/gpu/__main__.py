"""``scripts/gpu-check``: part by part, what the tests on a CPU can't tell of a GPU.

    scripts/gpu-check                       all parts that are not done yet
    scripts/gpu-check --parts steps bench   these, done or not
    scripts/gpu-check --report              only write docs/benchmarks/gpu.md of what there is

Needs no network. Each part is a process of its own with a time limit, and leaves a file in
measurements/gpu, so that it can be broken off and gone on with. It runs on a CPU too, where its
times say nothing: to see that it works. A report of a CPU's results stays beside them.

Knows: processes, files. Does not know: how anything is measured (``measure``, ``handover``,
``guide``) or shown (``report``).
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from scripts.gpu.parts import DONE, OWN, PARTS, ROOT, SIZE, STEPS, cache_bytes

LIMIT_S = 540
KEPT = 2000
"""Characters at the end of what a part said that are with its result; all are in a file beside."""

OWN_PARTS = {
    "steps": "measure:steps",
    "waits": "measure:waits",
    "memory": "measure:memory",
    "machine": "measure:machine",
    "handover": "handover:measure",
    "guide": "guide:measure",
    "one-engine": "one_engine:measure",
}
"""What measures here: module and function, by the flag that a process of its own is given."""


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


def _run(
    command: Sequence[str], env: dict[str, str], limit_s: float = LIMIT_S
) -> tuple[int, str, Any]:
    """Its exit code, what it said, and what it found: the last of that which is a line of JSON."""
    try:
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
        )
        said, code = ran.stdout, ran.returncode
    except subprocess.TimeoutExpired as late:
        said, code = (late.stdout or b"").decode("utf-8", "replace"), 124
    found = re.findall(r"^(\{.*\})$", said, re.M)
    return code, said, json.loads(found[-1]) if found else None


def do(
    name: str, on: dict[str, Any], width: int, layers: int, limit_s: float = LIMIT_S
) -> dict[str, Any]:
    """One part, in a process of its own."""
    part, began = PARTS[name], time.monotonic()
    sizes = {"width": width, "layers": layers, "cache_mib": -(-cache_bytes(width, layers) >> 20)}
    command = [each.format(**sizes) for each in part.command]
    env = os.environ | dict(part.env) | {SIZE: f"{width} {layers}"}
    try:
        with _mps("NUDGE_MPS" in dict(part.env)) as more:
            code, said, found = _run(command, env | more, limit_s)
    except (OSError, subprocess.SubprocessError) as error:  # there is no MPS, for instance
        code, said, found = 127, str(error), None
    (DONE / f"{name}.log").write_text(said, "utf-8")
    if part.rows is not None and code == 0:
        found = {"rows": json.loads(part.rows.read_text("utf-8"))["rows"]}
    if part.names and code == 0:
        lines = (line.strip() for line in said.splitlines() if part.names in line)
        found = {"lines": list(dict.fromkeys(lines))[:20]}
    return {
        "part": name,
        "what": part.what,
        "code": code,
        "seconds": round(time.monotonic() - began),
        "date": datetime.date.today().isoformat(),
        "machine": on,
        "size": [width, layers],
        "steps": os.environ.get(STEPS),
        "command": shlex.join(["python", *command]),
        "found": found,
        "said": said[-KEPT:],
    }


def results() -> list[dict[str, Any]]:
    files = {path.stem: path for path in DONE.glob("*.json")}
    return [json.loads(files[name].read_text("utf-8")) for name in PARTS if name in files]


def _own(name: str) -> Any:
    """What a part of this package finds, in the process that is for it."""
    module, function = OWN_PARTS[name].split(":")
    return asyncio.run(getattr(importlib.import_module(f"scripts.gpu.{module}"), function)())


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, help="these, also where they are done")
    add("--width", type=int, default=2048, help="hidden size of the base model that is made")
    add("--layers", type=int, default=24, help="its layers (2048 × 24: 2.4 GB in bfloat16)")
    add("--limit", type=float, default=LIMIT_S, help="seconds of a part, after which it is ended")
    add("--report", action="store_true", help="write docs/benchmarks/gpu.md, of a GPU's results")
    for name in OWN_PARTS:
        add(f"--{name}", dest="own", action="store_const", const=name, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.own:
        print(json.dumps(_own(args.own)))
        return
    if args.report:
        from scripts.gpu import report  # not in each engine's process, which imports this file

        there = report.write(results(), ROOT)
        if not there:
            sys.exit("there are no results: run some parts first")
        print(f"wrote {', '.join(str(each.relative_to(ROOT)) for each in there)}")
        return
    DONE.mkdir(parents=True, exist_ok=True)
    code, said, on = _run([*OWN, "--machine"], dict(os.environ))
    if code:
        sys.exit(f"{said}\nvLLM or torch can't be imported")
    for name in args.parts or [each for each in PARTS if not (DONE / f"{each}.json").exists()]:
        print(f"{name}: {PARTS[name].what} …", flush=True)
        done = do(name, on, args.width, args.layers, args.limit)
        (DONE / f"{name}.json").write_text(json.dumps(done, indent=1), "utf-8")
        print(f"  {'done' if done['code'] == 0 else 'FAILED'} in {done['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
