"""Work of rank 0 alone may take longer than a collective, fail, or never end."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoselect.config import ConfigError
from autoselect.ranks import rank_zero
from tests.launching import ROOT, start_ranks

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


def test_two_ranks_wait_for_rank_0_longer_than_for_a_collective(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    first, second = (rank.wait(200) for rank in start_ranks(2, tmp_path / "worker.py"))
    for _, log in (first, second):
        assert "slow {'rank': 0}" in log and "ConfigError: budget=0 is below 1" in log, log
    assert first[0] == 9
    assert "DistNetworkError: rank 0 (127.0.0.1) is dead" in second[1], second[1]


def test_errors_of_rank_0_reach_the_caller() -> None:
    def fail() -> None:
        raise ConfigError("budget=0 is below 1")

    assert rank_zero.on_main(lambda: 5) == 5
    with pytest.raises(ConfigError, match="budget=0"):
        rank_zero.on_main(fail)


PER_NODE = """
import sys, time
from pathlib import Path
from autoselect.ranks import processes
from autoselect.ranks.rank_zero import on_first_of_node

info = processes.RankInfo.from_environment()
processes.init_distributed(info, processes.choose_device(info), timeout_s=3)
done = Path(__file__).with_name("done")

def slow():
    time.sleep(5)
    with done.open("a") as file:
        file.write(f"{info.rank}")

def wrong():
    raise processes.ConfigError("model=org/name is gated")

with processes.patient_collectives(60, 3):
    on_first_of_node(slow, info.local_rank)
    print("done by", done.read_text(), flush=True)
    try:
        on_first_of_node(wrong, info.local_rank)
    except processes.ConfigError as error:
        print("ConfigError:", error, flush=True)
processes.shutdown_distributed()
"""


def test_one_rank_of_a_node_works_while_the_others_wait(tmp_path: Path) -> None:
    """A download takes longer than a collective, and its error reaches every rank."""
    (tmp_path / "worker.py").write_text(PER_NODE)
    for code, log in [rank.wait(200) for rank in start_ranks(2, tmp_path / "worker.py")]:
        assert code == 0, log
        assert "done by 0\n" in log and "ConfigError: model=org/name is gated" in log, log


ENDING = """
import sys
from autoselect.ranks import processes, rank_zero

processes.setup_logging()
info = processes.RankInfo.from_environment()
processes.setup_logging(info)
processes.init_distributed(info, processes.choose_device(info), for_deepspeed=False)
rank_zero.FAREWELL_S = 2.0
reason = sys.argv[1 + info.rank]
if reason == "works":
    import time
    time.sleep(4)
    processes.leave(0)
rank_zero.report_end(reason)
processes.leave(2)
"""


@pytest.mark.parametrize(
    ("reasons", "logged"),
    [
        (("budget=0", "budget=0"), (True, False)),
        (("budget=0", "no such file"), (True, True)),
        (("works", "no such file"), (False, True)),
        (("budget=0", "works"), (True, False)),
    ],
)
def test_a_reason_that_all_ranks_have_is_logged_once(tmp_path, reasons, logged) -> None:
    (tmp_path / "worker.py").write_text(ENDING)
    ended = [rank.wait(200) for rank in start_ranks(2, tmp_path / "worker.py", *reasons)]
    for (code, log), reason, own in zip(ended, reasons, logged, strict=True):
        assert code == (0 if reason == "works" else 2), log
        assert (f"ERROR {reason}" in log or f"] {reason}" in log) == own, log


def test_a_wrong_evaluation_on_two_ranks_ends_with_one_line(tmp_path: Path) -> None:
    flags = ["--model=m", "--selector=s", "--shards=t", "--budgets=8", f"--out={tmp_path}"]
    (tmp_path / "rows.json").write_text('[{"id": "x"}]')  # which only rank 0 converts
    mistakes = {
        "--random-seeds=0": "is below 1",
        "--nonsense": "unrecognized",
        f"--shards={tmp_path}/rows.json": "1 of 1 rows cannot be used",
    }
    for mistake, said in mistakes.items():
        worker = ROOT / "autoselect" / "eval.py"
        ended = [rank.wait(200) for rank in start_ranks(2, worker, *flags, mistake)]
        assert [(code, said in log) for code, log in ended] == [(2, True), (2, False)], ended
        assert not any("Traceback" in log for _, log in ended), ended


APART = """
import os, sys
from autoselect import eval
from autoselect.ranks import processes

folder = sys.argv[1:3][int(os.environ["RANK"])]
flags = ["--model=m", "--selector=s", "--shards=t", "--budgets=8", "--device=cpu"]
processes.leave(eval.main([*flags, f"--out={folder}"]))
"""


def test_an_evaluation_whose_ranks_do_not_share_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(APART)
    folders = [str(tmp_path / name) for name in ("first", "second")]
    ended = [rank.wait(200) for rank in start_ranks(2, tmp_path / "worker.py", *folders)]
    for (code, log), folder in zip(ended, folders, strict=True):
        assert code == 2 and f"--out {folder} must be a folder that all ranks see" in log, log
        assert "Traceback" not in log
    assert not list(tmp_path.glob("first/*")), "the mark is removed"
    ended = [rank.wait(200) for rank in start_ranks(2, tmp_path / "worker.py", *folders[:1] * 2)]
    assert not any("all ranks see" in log for _, log in ended), "a shared folder is accepted"
