"""On a server's ``PYTHONPATH``: as where only the orchestrator is installed."""

import sys

for name in ("torch", "vllm", "triton", "datasets", "matplotlib"):
    sys.modules[name] = None  # type: ignore[assignment]
