"""Ranks from every launcher, the port in use, logging, signals, agreement of the ranks."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from autoselect.config import ConfigError
from autoselect.ranks import processes
from autoselect.ranks.processes import setup_logging
from autoselect.ranks.rank_info import RankInfo
from autoselect.ranks.signals import ENDING, SignalFlag
from tests.launching import ROOT, Worker, environment, free_port, start_ranks


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, RankInfo(0, 1, 0, "single")),
        ({"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"}, RankInfo(0, 1, 0, "single")),
        ({"PMI_SIZE": "4", "SLURM_PTY_PORT": "40000"}, RankInfo(0, 1, 0, "single")),
        (
            {"PMI_SIZE": "2", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
            RankInfo(1, 2, 1, "launcher"),
        ),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"},
            RankInfo(3, 4, 1, "launcher"),
        ),
        (
            {
                "SLURM_PROCID": "5",
                "SLURM_NTASKS": "8",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_ID": "0",
            },
            RankInfo(5, 8, 1, "slurm"),
        ),
        # The launcher started by the batch shell of a Slurm job: its own variables win.
        (
            {
                "RANK": "1",
                "WORLD_SIZE": "2",
                "LOCAL_RANK": "1",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_ID": "0",
            },
            RankInfo(1, 2, 1, "launcher"),
        ),
        # Plain python in the batch shell, outside any step: a single process.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, RankInfo(0, 1, 0, "single")),
        # The shell of `salloc` on clusters that start it as a step of its own.
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "8",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_ID": "4294967290",
            },
            RankInfo(0, 1, 0, "single"),
        ),
        # One task of `srun -n 2` in a job of eight.
        (
            {
                "SLURM_PROCID": "1",
                "SLURM_NTASKS": "8",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_ID": "3",
            },
            RankInfo(1, 2, 1, "slurm"),
        ),
    ],
)
def test_ranks_are_read_from_every_launcher(
    environment: dict[str, str], expected: RankInfo
) -> None:
    assert RankInfo.from_environment(environment) == expected


@pytest.mark.parametrize(
    ("terminal", "task", "expected"),
    [
        (True, "1", RankInfo(0, 1, 0, "single")),
        (True, str(os.getpid()), RankInfo(0, 4, 0, "slurm")),
        (False, "1", RankInfo(0, 4, 0, "slurm")),
    ],
    ids=["typed in the shell", "started by srun itself", "a job submitted from the shell"],
)
def test_what_is_typed_in_the_shell_of_srun_pty_is_not_a_rank(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, task: str, expected: RankInfo
) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal)
    step = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
    pty = {"SLURM_PTY_PORT": "4000", "SLURM_TASK_PID": task}
    assert RankInfo.from_environment(step | pty) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "LOCAL_RANK is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=2 is outside 0..1"),
        (
            {"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            "RANK='-1' is not a number from 0 on",
        ),
        ({"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, "SLURM_NTASKS is not set"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2: processes of mpirun are not"),
        ({"PMI_SIZE": "4", "PMI_RANK": "3"}, "PMI_SIZE=4: processes of mpirun are not taken"),
    ],
)
def test_incomplete_environments_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RankInfo.from_environment(environment)


def test_a_slurm_step_needs_the_master_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_STEP_NUM_NODES", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "")  # of a command that found no node
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set.*slurm/train.sh"):
        processes._rendezvous(RankInfo(1, 2, 0, "slurm"), torch.device("cpu"))
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set.*slurm/train.sh"):
        processes._rendezvous(RankInfo(1, 2, 0, "slurm"), torch.device("cpu"))
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")
    meeting = processes._rendezvous(RankInfo(1, 2, 0, "slurm"), torch.device("cpu"))
    assert meeting["MASTER_ADDR"] == "127.0.0.1"


LAST = """
import os, signal, sys, time
from autoselect.ranks.signals import SignalFlag
signal.signal(signal.SIGINT, signal.SIG_DFL)
flag, number = SignalFlag(), getattr(signal, sys.argv[1])
flag.steps_begin()
if sys.argv[2] == "before":
    os.kill(os.getpid(), number)
flag.end_at_once()
os.kill(os.getpid(), number)
time.sleep(60)
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGINT"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_ends_what_follows_the_last_step(tmp_path: Path, number: str, when: str) -> None:
    (tmp_path / "worker.py").write_text(LAST)
    code, log = Worker(tmp_path / "worker.py", (number, when), environment()).wait(50)
    assert code == processes.EXIT_PREEMPTED and f"stopped by {number} after the last step" in log


def test_a_single_process_meets_itself_whatever_the_shell_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node-of-another-run")
    meeting = processes._rendezvous(RankInfo(0, 1, 0, "single"), torch.device("cpu"))
    assert meeting["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize("port", ["29500x", "0", "-1", "65536"])
def test_a_port_that_is_not_one_is_named(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    """At port 0 every rank would wait at a port of its own."""
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ConfigError, match=f"MASTER_PORT={port} is not a TCP port; choose 1024"):
        processes._rendezvous(RankInfo(0, 2, 0, "launcher"), torch.device("cpu"))


def test_deepspeed_is_told_the_number_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """srun --gpus-per-task=1 shows every task one GPU, as number 0."""
    monkeypatch.setenv("MASTER_ADDR", "node")
    third = RankInfo(3, 8, 3, "slurm")
    assert processes._rendezvous(third, torch.device("cuda", 0))["LOCAL_RANK"] == "0"
    assert processes._rendezvous(third, torch.device("cpu"))["LOCAL_RANK"] == "3"


JOIN = """
import time
from autoselect.ranks import exchange, processes
info = processes.RankInfo.from_environment()
device = processes.choose_device(info)
time.sleep(info.rank * {late})
try:
    processes.init_distributed(info, device, timeout_s={patience}, meeting_s={meeting})
except (processes.ConfigError, processes.RankLostError) as error:
    print(f"{{type(error).__name__}}:", error)
else:
    print("joined", exchange.any_true(True, device), exchange.any_true(False, device))
    processes.shutdown_distributed()
"""


def join(meeting: float, patience: float = 20, late: float = 0) -> str:
    """Run one rank; rank 1 starts `late` seconds after rank 0."""
    return JOIN.format(meeting=meeting, patience=patience, late=late)


def start(folder: Path, code: str, rank: int, **meeting: str) -> Worker:
    """Start one rank of two that runs `code`."""
    script = folder / "worker.py"
    script.write_text(code)
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    return Worker(script, (), environment() | {"MASTER_ADDR": "127.0.0.1"} | place | meeting)


def test_a_port_in_use_is_named_with_the_fix(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        _, log = start(tmp_path, join(meeting=20), 0, MASTER_PORT=port).wait(120)
    assert f"ConfigError: MASTER_PORT={port} is already in use" in log
    assert "--master_port" in log


def test_ranks_that_never_come_are_reported(tmp_path: Path) -> None:
    _, log = start(tmp_path, join(meeting=3), 1, MASTER_PORT=free_port()).wait(120)
    assert "RankLostError: rank 1 of 2 could not meet the others" in log


def test_a_rank_that_comes_late_is_waited_for_longer_than_in_collectives(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(join(meeting=90, patience=5, late=8))
    for code, log in [rank.wait(120) for rank in start_ranks(2, tmp_path / "worker.py")]:
        assert code == 0 and "joined True False" in log, log


PATIENT = """
import time
import torch.distributed as dist
from autoselect.ranks import exchange, processes

info = processes.RankInfo.from_environment()
device = processes.choose_device(info)
processes.init_distributed(info, device, timeout_s=5)
with processes.patient_collectives(60, 5):
    time.sleep(info.rank * 9)
    print("inside", exchange.any_true(True, device), flush=True)
time.sleep(info.rank * 9)
try:
    exchange.any_true(True, device)
except RuntimeError:
    print("given up afterwards", flush=True)
"""


def test_collectives_wait_longer_while_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(PATIENT)
    (_, early), (_, late) = (rank.wait(120) for rank in start_ranks(2, tmp_path / "worker.py"))
    assert "inside True" in early
    assert "given up afterwards" in early
    assert "inside True" in late


def test_a_single_process_needs_no_launcher_and_no_fixed_port(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(join(meeting=20))
    # The port is left over from another run; a single process ignores it.
    code, log = Worker(tmp_path / "worker.py", (), environment() | {"MASTER_PORT": "1"}).wait(120)
    assert code == 0 and "joined True False" in log


def test_an_empty_port_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "")
    meeting = processes._rendezvous(RankInfo(0, 2, 0, "launcher"), torch.device("cpu"))
    assert meeting["MASTER_PORT"] == "29500"


def test_only_rank_0_logs_at_info(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        setup_logging(RankInfo(0, 2, 0, "launcher"))
        logging.getLogger("autoselect.x").info("from the first")
        setup_logging(RankInfo(1, 2, 1, "launcher"))
        logging.getLogger("autoselect.x").info("from the second")
        logging.getLogger("autoselect.x").warning("trouble")
    finally:
        root.handlers[:], root.level = before, level
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("INFO from the first")
    assert "WARNING [rank 1" in lines[1] and lines[1].endswith("trouble")


@pytest.mark.parametrize("number", ENDING)
def test_signals_are_remembered_and_kill_nothing(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    try:
        flag = SignalFlag()
        flag.steps_begin()
        assert not flag.raised_anywhere(torch.device("cpu"))
        os.kill(os.getpid(), number)
        assert flag.received == number
        assert flag.raised_anywhere(torch.device("cpu"))
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


MEETING = """
import sys
import threading
from autoselect import train

def wait_in_vain(info, device):
    print("meeting", flush=True)
    threading.Event().wait()

train.processes.init_distributed = wait_in_vain
sys.exit(train.main([]))
"""


def test_a_rank_that_waits_for_one_that_failed_ends_at_sigterm() -> None:
    """Launchers send SIGTERM; a rank that they must kill would look crashed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    with subprocess.Popen(
        [sys.executable, "-c", MEETING], cwd=ROOT, env=environment, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"meeting\n"
            process.terminate()
            assert process.wait(60) == -signal.SIGTERM
        finally:
            process.kill()


INTERRUPTED = """
import os, signal, sys, time
from autoselect.ranks.processes import setup_logging
from autoselect.ranks.signals import SignalFlag
setup_logging()
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == "ignored" else signal.SIG_DFL)
flag = SignalFlag()
flag.steps_begin()
os.kill(os.getpid(), signal.SIGINT)
print("first", flag.received, flush=True)
os.kill(os.getpid(), signal.SIGINT)
print("second", flag.received, flush=True)
"""


def test_a_first_ctrl_c_is_remembered_and_a_second_one_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(INTERRUPTED)
    code, log = Worker(tmp_path / "worker.py", ("heard",), environment()).wait(50)
    assert code == -signal.SIGINT and "second" not in log
    assert "a checkpoint follows this step" in log and f"first {signal.SIGINT!s}" in log


def test_a_job_that_ignores_ctrl_c_goes_on_to_ignore_it(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(INTERRUPTED)
    code, log = Worker(tmp_path / "worker.py", ("ignored",), environment()).wait(50)
    assert code == 0 and "first None" in log and "second None" in log


def test_seeding_repeats_all_three_generators() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    processes.seed_everything(2**40 + 5)
    first = draw()
    assert draw() != first
    processes.seed_everything(2**40 + 5)
    assert draw() == first
