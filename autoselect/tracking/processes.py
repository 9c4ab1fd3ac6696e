"""Name the process that owns a run, so that a run whose process died can be recognised."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

HOST_TAG, PROCESS_TAG = "autoselect.host", "autoselect.process"


def own_process() -> dict[str, str]:
    """Return tags that name this process: host, and process id with its start time."""
    return {HOST_TAG: socket.gethostname(), PROCESS_TAG: _identity(os.getpid())}


def is_gone(tags: Mapping[str, str]) -> bool:
    """Return True if the tags name a process of this host that has ended."""
    process = tags.get(PROCESS_TAG, "")
    if tags.get(HOST_TAG) != socket.gethostname() or not process:
        return False
    return _identity(int(process.split(":")[0])) != process


def _identity(process_id: int) -> str:
    """Return `id:start`, start in clock ticks since boot, because process ids are reused."""
    stat = Path(f"/proc/{process_id}/stat")
    if stat.exists():
        return f"{process_id}:{stat.read_text().rpartition(')')[2].split()[19]}"
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return f"{process_id}:gone"
    except PermissionError:
        pass
    return f"{process_id}:alive"
