"""Whether a model's weights are complete, and what they take.

Knows: folders, the hub's lists and its cache; safetensors' headers. Downloads none. Does not know:
the model's configuration; memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download

from server.core import ConfigError
from server.engines.hub import NOT_READ
from server.engines.report import Notes, gib
from server.engines.vllm.backend import VllmSettings

_WEIGHTS = ["*.safetensors", "*.bin", "*.pt"]
_AGAIN = "copy or download the model again"


@dataclass(frozen=True, slots=True)
class Weights:
    """parameters: how many. size: bytes, as the engine loads them. exact: whether they were
    counted by headers, or estimated from the files' sizes."""

    parameters: int
    size: int
    exact: bool


def weigh(where: str, engine: VllmSettings, folder: Path, config: Any, notes: Notes) -> Weights:
    """A model's weights. Raises `ConfigError` where they are not complete."""
    width = 4 if engine.dtype in ("float32", "float") else 2
    stored = 4 if "float32" in str(config.dtype) else 2
    listed = [] if Path(engine.model).is_dir() else _at_hub(engine)
    missing = sum(each.file_size or 0 for each in listed if not each.is_cached)
    if missing:
        notes.ok(where, f"{gib(missing)} of weights will be downloaded")
        cache = Path(engine.args.get("download_dir") or constants.HF_HUB_CACHE)
        there = next(each for each in (cache, *cache.parents) if each.exists())
        if missing > (free := shutil.disk_usage(there).free):
            full = f"{gib(missing)} are to be downloaded, and {cache} has {gib(free)} of disk left"
            notes.fail(where, full, "Make room, or set HF_HOME to a larger disk")
        return _of_size(sum(each.file_size or 0 for each in listed), width, stored)
    paths = [Path(each.local_path) for each in listed] or _in(folder)
    found = _read(paths, width, stored, bool(getattr(config, "tie_word_embeddings", False)))
    size, files = sum(path.stat().st_size for path in paths), len(paths)
    about = f"{found.parameters / 1e6:,.1f} M parameters, {gib(size)}"
    notes.ok(where, f"{about} in {files} file{'' if files == 1 else 's'}")
    return found


def _at_hub(engine: VllmSettings) -> list[Any]:
    """Its weight files at the hub, and which are cached; none where the hub can't be asked."""
    folder = engine.args.get("download_dir")
    try:
        listed = snapshot_download(engine.model, revision=engine.revision, cache_dir=folder,
                                   allow_patterns=_WEIGHTS, ignore_patterns=NOT_READ,
                                   dry_run=True)  # fmt: skip
    except OSError:
        return []
    return [each for each in listed if each.filename.endswith(".safetensors")] or listed


def _in(folder: Path) -> list[Path]:
    """The weight files of a folder. Raises `ConfigError`."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{index} can't be read: {error!r}; {_AGAIN}") from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            of = f"{len(missing)} of {len(names)} weight files are missing from {folder}"
            which = f"{', '.join(missing[:3])}{' …' * (len(missing) > 3)}"
            raise ConfigError(f"{of} ({which}); {_AGAIN}")
        return [folder / name for name in names]
    for pattern in ("model*.safetensors", *_WEIGHTS):
        if found := sorted(folder.glob(pattern)):
            return found
    raise ConfigError(f"there are no weights in {folder}; {_AGAIN}")


def _of_size(size: int, width: int, stored: int) -> Weights:
    return Weights(size // stored, size // stored * width, exact=False)


def _read(paths: Sequence[Path], width: int, stored: int, tied: bool) -> Weights:
    """Floating-point numbers are loaded in ``width`` bytes each, all else (quantized weights) as
    it is; an output layer that is the embedding, not at all. Raises `ConfigError`."""
    from safetensors import SafetensorError, safe_open

    parameters, size = 0, sum(path.stat().st_size for path in paths)
    if paths[0].suffix != ".safetensors":
        return _of_size(size, width, stored)
    for path in paths:
        try:
            with safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_slice(name)
                    numbers = prod(tensor.get_shape())
                    own = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}.get(tensor.get_dtype())
                    if tied and name == "lm_head.weight":
                        numbers, size = 0, size - numbers * (own or 0)
                    parameters += numbers
                    size += numbers * (width - own) if own else 0
        except SafetensorError as error:
            with path.open("rb") as start:
                lfs = start.read(8) == b"version "
            pointer = "a pointer of Git LFS, not the file itself; run git lfs pull"
            what = pointer if lfs else f"no whole safetensors file ({error}); {_AGAIN}"
            raise ConfigError(f"{path} is {what}") from error
    return Weights(parameters, size, exact=True)
