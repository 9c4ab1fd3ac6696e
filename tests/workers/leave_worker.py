"""Ranks of `test_a_rank_leaves_with_its_own_code`: rank 0 leaves while gloo holds a tensor.

Usage: leave_worker.py MARKER   (ranks come from the environment)

Rank 1 answers the last collective when rank 0 is about to end; rank 0 then keeps the interpreter's
lock for a while, so that the thread of gloo that releases the tensor waits for it.
"""

from __future__ import annotations

import atexit
import ctypes

HELD_US = 3_000_000
# Registered before the handlers of other modules, so that it runs last. PyDLL keeps the lock.
atexit.register(ctypes.PyDLL(None).usleep, HELD_US)

import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from autoselect.ranks.processes import leave  # noqa: E402

CODE = 75


def main(marker: Path) -> None:
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        atexit.register(marker.touch)
        dist.all_reduce(torch.ones(1), async_op=True)
        leave(CODE)
    while not marker.exists():
        time.sleep(0.05)
    dist.all_reduce(torch.ones(1))
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
