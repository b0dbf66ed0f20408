"""What takes long and says little more than what is always run: ``scripts/test -m thorough``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

thorough = pytest.mark.thorough


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """A test's parameters, of which all but so many are thorough."""
    found: list[Any] = []
    for number, value in enumerate(values):
        several = value if isinstance(value, tuple) else (value,)
        found.append(value if number < count else pytest.param(*several, marks=thorough))
    return found
