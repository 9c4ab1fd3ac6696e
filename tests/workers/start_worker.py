"""One rank of the start tests in `tests/test_heartbeat.py`: `train.py`, where one rank misbehaves.

Usage: start_worker.py WHAT VICTIM   (ranks come from the environment)

The victim comes late from loading the model, or never; the others wait for it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch.distributed as dist

from autoselect.config import ConfigError
from autoselect.data.shards import ShardSet
from autoselect.ranks import heartbeat, processes
from autoselect.ranks.judge import Times
from autoselect.train import main
from autoselect.vlm.backbone import FrozenVLM
from tests.workers.heartbeat_worker import misbehave

LATE_S = 12.0
"""Seconds that a late rank takes to load, more than a stalled one is waited for."""


def run(what: str, victim: int) -> int:
    load = FrozenVLM.from_pretrained

    def loaded(*arguments: Any, **settings: Any) -> FrozenVLM:
        if processes.RankInfo.from_environment().rank == victim:
            time.sleep(LATE_S) if what == "late" else misbehave(what)
        return load(*arguments, **settings)

    def opened(*_: Any) -> ShardSet:
        dist.barrier()
        raise ConfigError("all ranks came to the shards")

    FrozenVLM.from_pretrained = loaded
    ShardSet.open = opened
    # Each case has little patience only for what it shows: a busy machine shows the others too.
    dead, stalled, apart = {
        "kill": (5.0, 60.0, 60.0),
        "stall": (60.0, 60.0, 10.0),
        "late": (60.0, LATE_S - 5, 60.0),
    }[what]
    heartbeat.Times = lambda: Times(0.2, dead, stalled, apart, leave=1.0)
    return main(["--data.train_shards", "unread.tar", "--tracking", "false"])


if __name__ == "__main__":
    processes.leave(run(sys.argv[1], int(sys.argv[2])))
