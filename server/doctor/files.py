"""Where a model's files are, whether its weights are complete, and what they take.

Knows: folders, the hub and its cache, how the hub refuses; safetensors' headers. Downloads what
is small (configuration and tokenizer, which the server needs anyway), never a weight. Does not
know: what the files mean; memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, snapshot_download
from huggingface_hub.utils.tqdm import disable_progress_bars

from server.config import EngineSettings
from server.core import ConfigError
from server.doctor.report import Notes, first_line, gib

_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_WEIGHTS = ["*.safetensors", "*.bin", "*.pt"]
_NOT_READ = ["*/*", "consolidated*"]  # other formats of the same
_AGAIN = "copy or download the model again"


@dataclass(frozen=True, slots=True)
class Weights:
    """parameters: how many. size: bytes, as the engine loads them. exact: whether they were
    counted by headers, or estimated from the files' sizes."""

    parameters: int
    size: int
    exact: bool


def locate(name: str, revision: str | None = None, *, code: bool = False) -> Path:
    """The folder of a model or tokenizer, by its path or its name on the hub, with all but weights
    in it. ``code``: with Python files. Raises `ConfigError` where it can't be had."""
    beside = "a relative path is looked up beside the configuration file"
    small = [*_SMALL, "*.py"] if code else _SMALL
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/")):
        raise ConfigError(f"there is no folder {name}; {beside}")
    disable_progress_bars()  # what is downloaded is small, and vLLM shows none either
    try:  # also where it is cached: what the hub has may be newer, and vLLM would take that
        return Path(snapshot_download(name, revision=revision, allow_patterns=small,
                                      ignore_patterns=_NOT_READ))  # fmt: skip
    except errors.HFValidationError as error:
        raise ConfigError(
            f"{name!r} is neither a folder nor a name on the hub; {beside}"
        ) from error
    except OSError as error:
        raise ConfigError(_refusal(name, revision, error)) from error


def _refusal(name: str, revision: str | None, error: OSError) -> str:
    """Why the hub didn't give a model; and what to do."""
    token = "set HF_TOKEN to a token of an account that may read it"
    by_hand = (
        f"download it where the hub can be reached (hf download {name}), into the cache "
        f"({constants.HF_HUB_CACHE}) or a folder that the configuration names"
    )
    match error:
        case errors.GatedRepoError():
            return f"{name!r} is gated; accept its licence on its page at the hub, and {token}"
        case errors.RevisionNotFoundError():
            return f"{name!r} has no revision {revision!r}; look at its page at the hub"
        case errors.RepositoryNotFoundError():
            absent = f"there is no folder {name!r}, and the hub has no such model, or it is private"
            return f"{absent}; check the spelling, or {token}"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            off = constants.HF_HUB_OFFLINE
            why = "is switched off (HF_HUB_OFFLINE)" if off else "can't be reached"
            return f"{name!r} is not in the cache, and the hub {why}; {by_hand}"
    return f"{name!r} can't be had: {first_line(error)}; {by_hand}"


def weigh(where: str, engine: EngineSettings, folder: Path, config: Any, notes: Notes) -> Weights:
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


def _at_hub(engine: EngineSettings) -> list[Any]:
    """Its weight files at the hub, and which are cached; none where the hub can't be asked."""
    folder = engine.args.get("download_dir")
    try:
        listed = snapshot_download(engine.model, revision=engine.revision, cache_dir=folder,
                                   allow_patterns=_WEIGHTS, ignore_patterns=_NOT_READ,
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
