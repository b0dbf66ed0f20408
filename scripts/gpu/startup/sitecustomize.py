"""Imported by each Python process of the part ``waits``: a warning names the project's lines that
it came from, too. Of a copy that waits, vLLM names only its own wrapper around it.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import Any

_shown = warnings.showwarning


def _with_ours(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    _shown(message, *args, **kwargs)
    for frame in reversed(traceback.extract_stack()[:-1]):
        if "server/engines/vllm" in frame.filename:
            print(f"{frame.filename}:{frame.lineno}: {frame.line} ({message})", file=sys.stderr)


warnings.showwarning = _with_ours
