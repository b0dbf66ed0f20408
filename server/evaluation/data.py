"""What is asked: prompts and data sets from files.

Knows: the file formats, and what is wrong with a row. Does not know: who answers, how answers are
scored.

A file is JSON Lines (one object a line), or plain text with one prompt a line. An object has
``prompt`` (the user's only message) or ``messages`` (OpenAI's), and whatever its scorer needs:
``answer`` (a text or number, or a list of which any will do), ``choices`` (texts; they are added to
``prompt`` as lettered lines), ``kind`` (a group that the report tells apart).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.core import Message, NudgeError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

ROLES = ("system", "user", "assistant")


class EvaluationError(NudgeError):
    """A measurement can't be made; the message says what to change."""


@dataclass(frozen=True)
class Item:
    """One question. ``number``: its place in the data, from 0. ``row``: all that the file says."""

    number: int
    messages: tuple[Message, ...]
    row: Mapping[str, Any]

    @property
    def kind(self) -> str | None:
        kind = self.row.get("kind")
        return None if kind is None else str(kind)


@dataclass(frozen=True)
class Data:
    """Some questions. ``digest``: of what is asked and of what scorers see of it."""

    name: str
    items: Sequence[Item]

    @property
    def digest(self) -> str:
        rows = [dict(item.row) for item in self.items]
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def read(path: Path, limit: int | None = None) -> Data:
    """The questions of a file, the first ``limit`` of them. Raises `EvaluationError`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise EvaluationError(f"{path} can't be read: {reason}") from None
    lines = [(place, line) for place, line in enumerate(text.split("\n"), 1) if line.strip()]
    objects = path.suffix in (".jsonl", ".json", ".ndjson") or (
        bool(lines) and lines[0][1].lstrip().startswith("{")
    )
    items: list[Item] = []
    for place, line in lines[:limit]:
        where = f"{path}, line {place}"
        row = _object(line, where) if objects else {"prompt": line.strip()}
        items.append(Item(len(items), _messages(row, where), row))
    if not items:
        raise EvaluationError(f"{path} holds no prompts; write one a line")
    return Data(path.name, items)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise EvaluationError(
            f"{where}: no JSON ({error.msg}, column {error.colno}); each line must be one object"
        ) from None
    if not isinstance(row, dict):
        raise EvaluationError(f'{where}: each line must be an object, as {{"prompt": "…"}}')
    return row


def _messages(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if (prompt is None) == (messages is None):
        raise EvaluationError(f"{where}: needs either 'prompt' or 'messages'")
    if messages is None:
        if not isinstance(prompt, str) or not prompt.strip():
            raise EvaluationError(f"{where}: 'prompt' must be a text that isn't empty")
        return (Message("user", prompt + _lettered(row, where)),)
    if not isinstance(messages, list) or not messages:
        raise EvaluationError(f"{where}: 'messages' must be a list that isn't empty")
    found = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(content, str):
            raise EvaluationError(
                f"{where}: each of 'messages' needs a 'role' ({', '.join(ROLES)}) and a 'content' "
                "that is a text"
            )
        found.append(Message(role, content))
    return tuple(found)


def _lettered(row: Mapping[str, Any], where: str) -> str:
    """The choices as lines that follow a prompt."""
    choices = row.get("choices")
    if choices is None:
        return ""
    good = isinstance(choices, list) and all(isinstance(each, str) for each in choices)
    if not good or not 2 <= len(choices) <= len(LETTERS):
        raise EvaluationError(f"{where}: 'choices' must be a list of 2 to {len(LETTERS)} texts")
    return "".join(
        f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
    )
