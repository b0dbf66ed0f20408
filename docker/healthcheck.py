"""Whether the server in this container is ready: exit code 0, or 1.

Standard library alone, and no proxy: a container that reaches the hub through one would ask it
for 127.0.0.1 too.
"""

from __future__ import annotations

import http.client
import os
import sys


def ready(port: int) -> bool:
    """Whether ``/ready`` says so; ``degraded`` counts."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not ready(int(os.environ.get("NUDGE_SERVER__PORT", "8000"))))
