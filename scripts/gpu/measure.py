"""What the smaller parts find: a step's time, what waits in it, memory, and the machine itself.

Knows: engines, the doctor's plan. Does not know: which part is done when, how it is shown.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from scripts.gpu import engines
from scripts.gpu.parts import ROOT


async def steps() -> dict[str, Any]:
    """Milliseconds a step, by scheduling, rows, and what the processor does: nothing, or p1."""
    found: dict[str, Any] = {"engines": {}, "ms": []}
    with tempfile.TemporaryDirectory() as folder:
        for scheduling in (None, False):
            own = {} if scheduling is None else {"async_scheduling": scheduling}
            engine = await engines.start(Path(folder), "base", **own)
            name = "asynchronous" if engine._core.ahead else "synchronous"
            try:
                if name in found["engines"]:  # this vLLM has no other
                    continue
                found["engines"][name] = engines.told(engine)
                for rows in engines.rows():
                    off, on = [
                        await engines.step_ms(engine, rows, engines.count(), **ends)
                        for ends in ({}, {"stop_below": 0.0})
                    ]
                    found["ms"].append({"scheduling": name, "rows": rows, "off": off, "on": on})
            finally:
                await engine.aclose()
    return found


async def waits() -> dict[str, Any]:
    """Runs what would be warned of. What is found is the warnings, which the part says."""
    with tempfile.TemporaryDirectory() as folder:
        engine = await engines.start(Path(folder), "base")
        try:
            for ends in ({"stop_below": 0.0}, {"word": ()}):
                await engines.step_ms(engine, 4, min(20, engines.count()), **ends)
        finally:
            await engine.aclose()
    return {}


async def memory() -> dict[str, Any]:
    """Bytes that the demo pair's engines took of each device, and those of the plan."""
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
    finally:
        await registry.aclose()
    found: dict[str, Any] = {}
    for device in ("cpu", *after.gpus):
        was, now = before.memory(device), after.memory(device)
        if was and now and was.free is not None and now.free is not None:
            name = "the CPU" if device == "cpu" else f"GPU {device}"
            found[name] = {"taken": was.free - now.free, "planned": {}}
    for device in plan.devices:
        found.setdefault(device.name, {"taken": None})["planned"] = {
            each.name: (each.weights or 0) + (each.cache or 0) + each.allowance
            for each in device.tenants
        }
    return found


async def machine() -> dict[str, Any]:
    import torch

    from scripts.benchmark.measure import machine as found

    return found() | {"gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
