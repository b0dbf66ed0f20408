"""What is wrong with settings, as it is told: where, what, and what was perhaps meant.

Knows: pydantic's errors. Does not know: which settings there are, but by looking at their classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from server.engines.backends import BACKENDS
from server.engines.report import did_you_mean


def told(
    errors: Sequence[ErrorDetails],
    settings: type[BaseModel],
    path: Path,
    environment: Mapping[str, str],
    flags: Mapping[str, Any],
) -> str:
    """All of it, each line behind what set the wrong value: a flag, a variable, or the file.

    Args:
        settings: the class that refused them.
        environment: its variables that could have. flags: by their path, joined by ``__``.
    """
    lines = [_line(error, settings) for error in errors]
    elsewhere = {line: _elsewhere(line, environment, flags) for line in lines}
    of_file = [line for line in lines if elsewhere[line] is None]
    file = ["\n  ".join((f"{path}:", *of_file))] if of_file else []
    return "\n".join([*file, *(found for line in lines if (found := elsewhere[line]) is not None)])


def _line(error: ErrorDetails, settings: type[BaseModel]) -> str:
    """Where something is wrong, and what."""
    where = [step for step in error["loc"] if step != "[key]"]
    text = re.sub(r"^Value error, ", "", error["msg"])
    if error["type"] == "extra_forbidden":
        text += _meant(settings, error["loc"])
    if error["type"].startswith("union_tag"):
        where.append("backend")
        text = f"Input should be {' or '.join(map(repr, BACKENDS))}"
    elif where[:1] == ["engines"]:
        del where[2:3]  # the backend, by which the settings were told apart
    return ": ".join(filter(None, (".".join(map(str, where)), text)))


def _meant(settings: type[BaseModel], where: Sequence[int | str]) -> str:
    """What is spelled like an unknown key and is there, or in a section below."""
    *above, key = where
    steps = iter(above)
    for step in steps:
        found: Any = settings.model_fields[str(step)].annotation
        if get_origin(found) is dict:
            next(steps)  # the name of an engine or a model
            found = get_args(found)[-1]
        settings = found if _is_section(found) else BACKENDS[str(next(steps))].settings
    known = {name: name for name in settings.model_fields}
    for section, field in settings.model_fields.items():
        if _is_section(field.annotation):
            for name in field.annotation.model_fields:
                known.setdefault(name, f"{section}.{name}")
    meant = did_you_mean(str(key), known, known)
    if not meant and "args" in known:
        return "; what else its engine takes goes under args"
    return meant


def _is_section(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _elsewhere(line: str, environment: Mapping[str, str], flags: Mapping[str, Any]) -> str | None:
    """The line of a value that a flag or a variable set; None: it is the file's."""
    where, _, text = line.partition(": ")
    for flag in flags:
        if where == flag.replace("__", "."):
            return f"--{flag.rpartition('__')[2].replace('_', '-')}: {text}"
    for name, value in environment.items():
        section = name.removeprefix("NUDGE_").lower().replace("__", ".")
        inner = where.removeprefix(section)
        if where == section:
            return f"{name} in the environment: {text}"
        if inner != where and inner.startswith(".") and _holds(value, inner[1:].split(".")):
            return f"{name} in the environment: {inner[1:]}: {text}"
    return None


def _holds(value: str, steps: Sequence[str]) -> bool:
    """Whether the JSON of a variable has what lies there. (It is merged into the file's.)"""
    try:
        node = json.loads(value)
    except ValueError:
        return False
    for step in steps:
        if isinstance(node, dict) and step not in node:
            return False
        node = node[step] if isinstance(node, dict) else None
    return True
