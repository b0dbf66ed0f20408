"""Where a model's files are: a folder, the cache, or the hub; and why they can't be had.

Knows: Hugging Face names, the cache, how the hub refuses. Downloads what is small (configuration
and tokenizer, which the server needs anyway), never a weight. Does not know: what the files mean.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.doctor import weights
from server.doctor.report import Notes
from server.doctor.weights import Incomplete, Weights

_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
_INNER = ["*/*"]  # of a repository: other formats, which the server doesn't read
_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Files:
    """folder: on this machine, with configuration and tokenizer; with the weights too, unless
    ``remote``."""

    folder: Path
    remote: bool


def locate(where: str, name: str, revision: str | None, code: bool, notes: Notes) -> Files | None:
    """A model or tokenizer by folder or hub name. ``code``: with the repository's Python files.
    None, and an error noted, where it can't be had."""
    if Path(name).is_dir():
        return Files(Path(name), remote=False)
    if name.startswith((".", "/")):
        notes.fail(
            where,
            f"there is no folder {name}",
            "A relative path is looked up beside the configuration file",
        )
        return None
    return _from_hub(where, name, revision, [*_SMALL, *(["*.py"] if code else [])], notes)


def _from_hub(
    where: str, name: str, revision: str | None, small: list[str], notes: Notes
) -> Files | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        # Also where it is cached: what the hub has may be newer, and vLLM would take that.
        with _quietly():
            folder = snapshot_download(
                name,
                revision=revision,
                allow_patterns=small,
                ignore_patterns=_INNER,
                etag_timeout=_PATIENCE_S,
            )
    except (OSError, HFValidationError) as error:
        notes.fail(where, *_refusal(name, revision, error))
        return None
    return Files(Path(folder), remote=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars: what is downloaded is small."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _refusal(name: str, revision: str | None, error: Exception) -> tuple[str, str]:
    """Why the hub didn't give a model, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    token = os.environ.get("HF_TOKEN")
    by_hand = (
        f"Download it where the hub can be reached (hf download {name}), into the cache "
        f"({constants.HF_HUB_CACHE}) or a folder that the configuration names"
    )
    match error:
        case HFValidationError():
            return (
                f"{name!r} is neither a folder nor a name on the hub",
                "A folder is looked up beside the configuration file",
            )
        case GatedRepoError():
            return (
                f"{name!r} is gated",
                "Accept its licence on its page at the hub, and "
                + ("use a token of that account (HF_TOKEN)" if token else "set HF_TOKEN"),
            )
        case RevisionNotFoundError():
            return f"{name!r} has no revision {revision!r}", "Look at its page at the hub"
        case RepositoryNotFoundError():
            return (
                f"there is no folder {name!r}, and the hub has no such model, or it is private",
                "Check the spelling; a private or gated one needs HF_TOKEN"
                + (", and this token may not read it" if token else ""),
            )
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() if constants.HF_HUB_OFFLINE:
            return (
                f"{name!r} is not in the cache, and the hub is switched off (HF_HUB_OFFLINE)",
                f"{by_hand}, or unset HF_HUB_OFFLINE",
            )
        case LocalEntryNotFoundError():
            return f"{name!r} is not in the cache, and the hub can't be reached", by_hand
    return f"{name!r} can't be had: {str(error).strip().splitlines()[0]}", by_hand


def weights_of(
    where: str, name: str, revision: str | None, files: Files, download_dir: str | None,
    float_bytes: int, notes: Notes,
) -> Weights | None:  # fmt: skip
    """The model's weights. Of those still at the hub only the sizes are known. None, and an error
    noted, where they are not complete."""
    folder = files.folder
    if files.remote:
        sizes = _still_there(name, revision, download_dir)
        if sizes is None:
            return _in_cache(where, name, folder, notes)
        missing = sum(size for size, cached in sizes.values() if not cached)
        if missing:
            notes.ok(where, f"{gib(missing)} of weights will be downloaded")
            _check_disk(where, missing, download_dir, notes)
            total = sum(size for size, _ in sizes.values())
            return weights.of_size(total, len(sizes), float_bytes)
        if download_dir is not None:
            return weights.of_size(sum(s for s, _ in sizes.values()), len(sizes), float_bytes)
    try:
        return weights.read(folder)
    except Incomplete as error:
        notes.fail(where, str(error), error.advice)
        return None


def _in_cache(where: str, name: str, folder: Path, notes: Notes) -> Weights | None:
    """The hub can't be asked: what is in the cache must do."""
    try:
        return weights.read(folder)
    except Incomplete as error:
        notes.fail(
            where,
            f"{name!r} is in the cache, but not all of it: {error}",
            f"Download the rest where the hub can be reached (hf download {name})",
        )
        return None


def _still_there(
    name: str, revision: str | None, download_dir: str | None
) -> Mapping[str, tuple[int, bool]] | None:
    """The weight files at the hub: size, and whether it is cached. None: it can't be asked."""
    from huggingface_hub import snapshot_download

    for patterns in (["*.safetensors"], ["*.bin", "*.pt"]):
        try:
            with _quietly():
                listed = snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=patterns,
                    ignore_patterns=[*_INNER, "consolidated*"],
                    cache_dir=download_dir,
                    etag_timeout=_PATIENCE_S,
                    dry_run=True,
                )
        except OSError:
            return None
        if listed:
            return {each.filename: (each.file_size or 0, each.is_cached) for each in listed}
    return {}


def _check_disk(where: str, needed: int, download_dir: str | None, notes: Notes) -> None:
    from huggingface_hub import constants

    folder = Path(download_dir or constants.HF_HUB_CACHE)
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        notes.fail(
            where,
            f"{gib(needed)} are to be downloaded, and {folder} has {gib(free)} of disk left",
            "Make room, or set HF_HOME to a larger disk",
        )


def gib(size: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale or unit == "MiB":
            return f"{size / scale:.{1 if size < 100 * scale else 0}f} {unit}"
    raise AssertionError
