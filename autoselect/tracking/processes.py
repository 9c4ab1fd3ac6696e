"""Which process owns a run, so that runs whose process is gone can be told from living ones."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

HOST_TAG, PROCESS_TAG = "autoselect.host", "autoselect.process"


def own_process() -> dict[str, str]:
    """Tags that name this process: host, and process id with its start time."""
    return {HOST_TAG: socket.gethostname(), PROCESS_TAG: _identity(os.getpid())}


def is_gone(tags: Mapping[str, str]) -> bool:
    """True when the tags name a process of this host that does not run any more."""
    process = tags.get(PROCESS_TAG, "")
    if tags.get(HOST_TAG) != socket.gethostname() or not process:
        return False
    return _identity(int(process.split(":")[0])) != process


def _identity(process_id: int) -> str:
    """`id:start`, start in clock ticks since boot, so that a reused id is not taken for the run."""
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
