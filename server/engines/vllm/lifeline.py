"""An engine process dies with its server.

Imported by vLLM in each of its processes, so it is light. Knows: processes. Does not know: vLLM.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import threading
from pathlib import Path
from typing import Any

SERVER = "NUDGE_SERVER_PROCESS"
"""Environment variable: the process that every engine process on its host must die with, as
`this_process` tells it."""

COLLECTION = (700, 10, 10)
"""When garbage is collected: Python's own thresholds. `server.cli` raises them for the imports."""

_watching: set[int] = set()


def this_process() -> str:
    """This process, as those that it starts are told of it: its pid, and where that means it.

    Ray hands the environment on to other nodes, where the pid is nobody's, or somebody else's.
    """
    return f"{os.getpid()} {_host()}"


def _host() -> str:
    """Where a pid means the same process: this boot of this host. (A container has a name of its
    own, and pids of its own.)"""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{os.uname().nodename} {boot}"


def die_with_server() -> None:
    """Entry point ``vllm.general_plugins``: run by vLLM in each of its processes.

    An engine process whose server is gone, even by kill -9, would otherwise go on for ever.
    And a terminal's Ctrl-C goes to its whole process group, but what is being written is to be
    finished first: so the engine leaves the group, and ends when the server says so.

    A process on another host than the server's is left to whoever started it there.
    """
    told, _, host = os.environ.get(SERVER, "0").partition(" ")
    pid = int(told)
    if not pid or host != _host() or pid == os.getpid() or os.getpid() in _watching:
        return
    _watching.add(os.getpid())
    gc.set_threshold(*COLLECTION)
    with contextlib.suppress(PermissionError):  # it leads a session of its own: out already
        os.setpgid(0, 0)
    threading.Thread(target=_exit_after, args=(pid,), daemon=True, name="server-watch").start()


def _exit_after(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)
    poll: Any = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll()
    os._exit(1)
