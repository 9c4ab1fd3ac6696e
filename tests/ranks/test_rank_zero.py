"""Work of rank 0 alone may take longer than a collective, fail, or never end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autoselect.config import ConfigError
from autoselect.ranks import rank_zero
from autoselect.ranks.processes import _free_port

WORKERS = Path(__file__).parents[1] / "workers"

WORKER = """
import os, time
import torch.distributed as dist
from autoselect.ranks import processes
from autoselect.ranks.rank_zero import on_main

info = processes.RankInfo.from_environment()
processes.init_distributed(info, processes.choose_device(info), timeout_s=6)

def slow():
    time.sleep(9)
    return {"rank": info.rank}

def wrong():
    raise processes.ConfigError("budget=0 is below 1")

print("slow", on_main(slow), flush=True)
try:
    on_main(wrong)
except processes.ConfigError as error:
    print("ConfigError:", error, flush=True)
try:
    on_main(lambda: os._exit(9))
except dist.DistNetworkError as error:
    print("DistNetworkError:", error, flush=True)
os._exit(0)
"""


def test_two_ranks_wait_for_rank_0_longer_than_for_a_collective() -> None:
    from tests.workers.toy import environment

    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environment() | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        logs = [process.communicate(timeout=200)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for log in logs:
        assert "slow {'rank': 0}" in log and "ConfigError: budget=0 is below 1" in log, log
    assert ranks[0].returncode == 9
    assert "DistNetworkError: rank 0 (127.0.0.1) is dead" in logs[1], logs[1]


def test_errors_of_rank_0_reach_the_caller() -> None:
    def fail() -> None:
        raise ConfigError("budget=0 is below 1")

    assert rank_zero.on_main(lambda: 5) == 5
    with pytest.raises(ConfigError, match="budget=0"):
        rank_zero.on_main(fail)
