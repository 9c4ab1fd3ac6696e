"""One rank of `tests/test_heartbeat.py`: steps with a collective each; one rank misbehaves.

Usage: heartbeat_worker.py WHAT VICTIM   (ranks come from the environment)

A WHAT that begins with `apart_` happens before the steps, in work that each rank does by itself;
`linger` happens after them, while the others leave.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.judge import Times
from autoselect.ranks.processes import RankInfo, leave, setup_logging, shutdown_distributed

TIMES = Times(beat=0.2, dead=2.0, stalled=3.0, apart=15.0, leave=1.0)


def misbehave(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "stall":
        time.sleep(60)
    elif what == "late":
        time.sleep(2 * TIMES.stalled)
    elif what == "linger":
        time.sleep(TIMES.dead + 2 * TIMES.leave)
    elif what == "raise":
        raise ValueError("shard train-000003.tar is broken")


def main(what: str, victim: int) -> None:
    info = RankInfo.from_environment()
    setup_logging(info)
    timeout = timedelta(seconds=5 if what == "apart" else 30)
    dist.init_process_group("gloo", timeout=timeout)  # without DeepSpeed: starts in half the time
    with Heartbeat(info, TIMES) as heartbeat:
        with heartbeat.independently("loading the model"):
            if what.startswith("apart_") and info.rank == victim:
                misbehave(what.removeprefix("apart_"))
        for step in range(6):
            heartbeat.progress(f"update {step}: begun")
            if step == 3 and info.rank == victim and what != "linger":
                misbehave(what)
            heartbeat.progress(f"update {step}: batch read")
            if what == "apart" and step == 3 and info.rank == victim:
                time.sleep(60)
            dist.all_reduce(torch.ones(1))
        if what == "linger" and info.rank == victim:
            misbehave(what)
    shutdown_distributed()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
    leave(0)
