"""A model's weights as they lie in a folder: complete or not, how many, how large.

Knows: the layout of safetensors files (https://huggingface.co/docs/safetensors) and of their
index. Reads headers, never a weight. Does not know: where the folder is from, memory.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"

_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_HEADER_LIMIT = 100_000_000  # safetensors' own


class Incomplete(Exception):
    """The weights are not all there. ``advice``: what to do."""

    def __init__(self, text: str, advice: str) -> None:
        super().__init__(text)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Weights:
    """floats: how many numbers are stored as floating point, which are loaded in the engine's
    dtype. head: how many of them are an output layer that a model with tied embeddings doesn't
    load. fixed: bytes of everything else (quantized weights), loaded as they are. stored: bytes
    on disk. files: how many. exact: whether headers were read."""

    floats: int
    fixed: int
    stored: int
    files: int
    head: int = 0
    exact: bool = True
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """Of weights; of quantized ones those are counted that a file has entries for."""
        return self.floats + sum(self.others.values())

    def loaded(self, float_bytes: int, tied: bool) -> int:
        """Bytes in memory."""
        return (self.floats - (self.head if tied else 0)) * float_bytes + self.fixed


def read(folder: Path) -> Weights:
    """The weights of a local folder. Raises `Incomplete`."""
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
            raise Incomplete(
                f"{len(missing)} of {len(names)} weight files are missing ({shown})",
                f"Copy or download them again into {folder}",
            )
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        # Mistral's own format, beside the other one.
        names = [name for name in names if not name.startswith("consolidated")] or names
    if names:
        return _sum([_header(folder / name) for name in names])
    old = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if not old:
        raise Incomplete(
            f"there are no weights in {folder}",
            "A model folder has model.safetensors, or several such files and an index",
        )
    return of_size(sum(path.stat().st_size for path in old), len(old))


def of_size(stored: int, files: int, float_bytes: int = 2) -> Weights:
    """Files whose headers can't be read: taken for floats of so many bytes."""
    return Weights(stored // float_bytes, 0, stored, files, exact=False)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Incomplete(f"{index} can't be read: {error!r}", "Download it again") from error


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """A file's size and what is in it. A safetensors file is a length (8 bytes), that much JSON,
    and data; where it is shorter than its header says, a download was cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise Incomplete(
                f"{path} is a pointer of Git LFS, not the file itself", "Run git lfs pull"
            )
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (_HEADER_LIMIT + 1,)
        try:
            if length > _HEADER_LIMIT:
                raise ValueError("it has no header")
            header = json.loads(file.read(length))
            tensors = {name: each for name, each in header.items() if name != "__metadata__"}
            end = max((each["data_offsets"][1] for each in tensors.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise Incomplete(
                f"{path} is no safetensors file: {error}", "Download it again"
            ) from error
    if size < 8 + length + end:
        raise Incomplete(
            f"{path} is cut off: it has {size} of {8 + length + end} bytes", "Download it again"
        )
    return size, tensors


def _sum(files: Iterable[tuple[int, dict[str, Any]]]) -> Weights:
    floats = head = fixed = stored = count = 0
    others: dict[str, int] = {}
    for size, tensors in files:
        stored += size
        count += 1
        for name, tensor in tensors.items():
            numbers, kind = prod(tensor["shape"]), str(tensor["dtype"])
            if kind in _FLOATS:
                floats += numbers
                head += numbers if name == "lm_head.weight" else 0
            else:
                begin, end = tensor["data_offsets"]
                fixed += end - begin
                others[kind] = others.get(kind, 0) + numbers
    return Weights(floats, fixed, stored, count, head, others=others)
