"""A task's questions, from the hub or from a folder.

Knows: the library `datasets` (an optional extra, imported where it is used), files of rows, and how
the authors draw a sample. Does not know: what is in a row (the table does), who answers.

A folder holds a file for each task, with its rows as the hub has them: ``TASK.jsonl``,
``TASK.json`` (a list) or ``TASK.parquet``. A task's original public file will do too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.core import Message
from server.evaluation.data import Data, EvaluationError, Item
from server.evaluation.paper.tasks import TASKS, PaperTask, Question, Row

SEED = 609
"""The authors'."""

INSTALL = "pip install 'nudging-server[eval]'"
_PARQUET = "refs/convert/parquet"
"""The hub's own conversion of a data set that would run code to load."""


@dataclass(frozen=True)
class Asked:
    """A task's questions. data: what everybody answers. questions: what scorers see, in order."""

    task: PaperTask
    data: Data
    questions: Sequence[Question]


def named(names: Iterable[str]) -> list[PaperTask]:
    """Tasks by name, each once. Raises `EvaluationError`."""
    found = list(dict.fromkeys(names))
    for name in found:
        if name not in TASKS:
            raise EvaluationError(f"there is no task {name!r} (there are {', '.join(TASKS)})")
    if not found:
        raise EvaluationError("name at least one task, as in --task gsm8k,svamp")
    return [TASKS[name] for name in found]


def found(task: PaperTask, folder: Path) -> Path | None:
    """Its file in a folder, if there is one."""
    stems = [task.name, *([task.file] if task.file else [])]
    paths = (folder / f"{stem}.{end}" for stem in stems for end in ("jsonl", "json", "parquet"))
    return next(filter(Path.is_file, paths), None)


def load(task: PaperTask, folder: Path | None, limit: int | None, *, prefixed: bool) -> Asked:
    """
    Args:
        folder: of files; None: from the hub.
        limit: so many rows, drawn as the authors do.
        prefixed: whether the user's turn begins with the task's prefix, as in the paper.

    Raises `EvaluationError`.
    """
    rows = _hub(task) if folder is None else _file(task, folder)
    questions: list[Question] = []
    items: list[Item] = []
    for place in sample(len(rows), limit):
        question = _question(task, rows[place], place)
        text = task.prompt(question) if prefixed else question.context + question.text
        messages = (Message("system", task.instruction), Message("user", text))
        row = {"prompt": text, "system": task.instruction, "answer": question.gold}
        items.append(Item(len(items), messages, row))
        questions.append(question)
    if not items:
        raise EvaluationError(f"{task.name} has no rows")
    return Asked(task, Data(task.name, items), questions)


def sample(count: int, limit: int | None) -> list[int]:
    """Places of the rows that are asked."""
    if limit is None or limit >= count:
        return list(range(count))
    drawn = np.random.RandomState(SEED).choice(count, limit, replace=False)
    return [int(place) for place in drawn]


def _question(task: PaperTask, row: Row, place: int) -> Question:
    try:
        if task.original is not None and not _as_the_hub(task, row):
            row = task.original(row)
        return task.read(row)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(
            f"{task.name}, row {place + 1}, isn't as {task.hub} has it "
            f"({type(error).__name__}: {error})"
        ) from None


def _as_the_hub(task: PaperTask, row: Row) -> bool:
    return task.key in row and "target_scores" not in row


# -- the hub --------------------------------------------------------------------------------------


def _hub(task: PaperTask) -> Sequence[Row]:
    try:
        import datasets
    except ImportError:
        raise EvaluationError(
            f"loading {task.hub} takes the library datasets: {INSTALL}; or give a folder of files "
            "as --data"
        ) from None
    try:
        try:
            found: Sequence[Row] = datasets.load_dataset(task.hub, task.config, split=task.split)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            found = datasets.load_dataset(
                task.hub, task.config, split=task.split, revision=_PARQUET
            )
    except Exception as error:  # network, hub and formats each have their own
        raise EvaluationError(f"{task.hub} can't be loaded: {error}") from error
    return found


# -- files ----------------------------------------------------------------------------------------


def _file(task: PaperTask, folder: Path) -> Sequence[Row]:
    path = found(task, folder)
    if path is None:
        raise EvaluationError(f"{folder} has no {task.name}.jsonl (nor .json, .parquet)")
    return _parquet(path) if path.suffix == ".parquet" else _json(path)


def _json(path: Path) -> Sequence[Row]:
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".jsonl":
            rows: Any = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = json.loads(text)
            rows = rows.get("examples") if isinstance(rows, dict) else rows
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} can't be read: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{path} is no list of rows")
    return rows


def _parquet(path: Path) -> Sequence[Row]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise EvaluationError(f"reading {path.name} takes pyarrow: {INSTALL}") from None
    rows: Sequence[Row] = parquet.read_table(path).to_pylist()
    return rows
