"""Names of the domain."""

from __future__ import annotations

from typing import Literal, TypeAlias

Speaker = Literal["base", "aligned"]
"""The model that produced a piece of output."""

TokenIds: TypeAlias = list[int]
