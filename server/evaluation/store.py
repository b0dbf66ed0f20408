"""Results in a folder, one JSON object a line, so that a run that was cut off goes on.

Knows: files. Does not know: what a result is.

``run.json`` says what was asked of whom; results of another question are never mixed in.
"""

from __future__ import annotations

import datetime
import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from server.evaluation.data import EvaluationError

Key = tuple[str, int]
"""Who answered (a system's name), and the number of the question."""


class Store:
    """The results of one run. A context manager; one process at a time.

    begun: the date of the run's beginning.
    """

    def __init__(self, folder: Path, setup: Mapping[str, Any], *, fresh: bool = False) -> None:
        """
        Args:
            setup: whatever the results depend on, as JSON can hold it.
            fresh: drop what is there.

        Raises:
            EvaluationError: the folder holds the results of another setup, or can't be used.
        """
        self.path = folder / "results.jsonl"
        self._setup_path = folder / "run.json"
        self.results: dict[Key, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise EvaluationError(f"can't write to {folder}: {error.strerror or error}") from None
        try:
            self._lock(folder)
            if fresh:
                self._file.truncate(0)
                self._setup_path.unlink(missing_ok=True)
            self.begun = self._check(folder, json.loads(json.dumps(setup)))
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, system: str, item: int, result: Mapping[str, Any]) -> None:
        """Keep a result, at once."""
        line = {"system": system, "item": item, **result}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        self.results[system, item] = line

    def expect(self, system: str, depends: Mapping[str, Any]) -> None:
        """What this system's results depend on besides the setup. Raises `EvaluationError` where
        those that are there depended on something else."""
        depends = json.loads(json.dumps(depends))
        kept = json.loads(self._setup_path.read_text("utf-8"))
        before = kept.setdefault("systems", {}).setdefault(system, depends)
        if before != depends:
            raise EvaluationError(
                f"{self._setup_path.parent} holds results of another {system}; give another --out, "
                "or --fresh to drop them"
            )
        self._write(kept)

    def _write(self, kept: Mapping[str, Any]) -> None:
        text = json.dumps(kept, indent=1, ensure_ascii=False)
        self._setup_path.write_text(text + "\n", "utf-8")

    def _lock(self, folder: Path) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EvaluationError(f"another run is writing to {folder}") from None

    def _check(self, folder: Path, setup: dict[str, Any]) -> str:
        """Returns when the run began."""
        try:
            there = json.loads(self._setup_path.read_text("utf-8"))
            begun, before = str(there["begun"]), there["setup"]
        except FileNotFoundError:
            begun = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
            self._write({"begun": begun, "setup": setup})
            return begun
        except (ValueError, KeyError, TypeError):
            raise EvaluationError(
                f"{self._setup_path} can't be read; give another --out, or --fresh to drop what "
                "is there"
            ) from None
        if differing := sorted(k for k in {*setup, *before} if setup.get(k) != before.get(k)):
            raise EvaluationError(
                f"{folder} holds results of another run ({', '.join(differing)} differ); give "
                "another --out, or --fresh to drop them"
            )
        return begun

    def _read(self) -> None:
        """What is there. A last line that was cut off is dropped."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        for place, line in enumerate(data[:whole].splitlines(), 1):
            try:
                result = json.loads(line)
                self.results[result["system"], result["item"]] = result
            except (ValueError, KeyError, TypeError):
                raise EvaluationError(
                    f"{self.path}, line {place}, is no result; mend it, or give --fresh"
                ) from None
