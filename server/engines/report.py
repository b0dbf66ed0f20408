"""What is found before an engine is started: findings of three levels, each with what to do about
it. Does not know: any check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from server.core import ConfigError


@dataclass(frozen=True, slots=True)
class Finding:
    """level: ``error`` where the server could not start or a model could not answer. where: the
    place in the configuration, or the device. advice: what to do next; empty for ``ok``."""

    level: Literal["ok", "warning", "error"]
    where: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        told = f"{self.where}: {self.text}" if self.where else self.text
        return f"{sentence(told)} {self.advice}" if self.advice else told


class Notes(list[Finding]):
    """Findings as they come, in order."""

    def ok(self, where: str, text: str) -> None:
        self.append(Finding("ok", where, text))

    def warn(self, where: str, text: str, advice: str) -> None:
        self.append(Finding("warning", where, text, advice))

    def fail(self, where: str, text: str, advice: str = "") -> None:
        self.append(Finding("error", where, text, advice))

    @contextmanager
    def catching(self, where: str) -> Iterator[None]:
        """A `ConfigError`, its advice behind a semicolon, is an error that is noted."""
        try:
            yield
        except ConfigError as error:
            text, _, advice = str(error).partition("; ")
            self.fail(where, text, advice[:1].upper() + advice[1:])


def sentence(text: str) -> str:
    """With a full stop, where it has no end of its own."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def gib(size: float) -> str:
    """Bytes for people."""
    unit, scale = ("GiB", 2**30) if size >= 2**30 else ("MiB", 2**20)
    return f"{size / scale:.{1 if size < 100 * scale else 0}f} {unit}"


def first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def did_you_mean(word: str, known: Iterable[str], said: Mapping[str, str] | None = None) -> str:
    """The end of a sentence that refuses a word; empty where nothing is spelled alike.

    Args:
        known: words that there are. said: how to say them, where that is otherwise.
    """
    for close in get_close_matches(word, known, n=1, cutoff=0.7):
        return f"; did you mean {(said or {}).get(close, close)!r}?"
    return ""
