"""Processes of a run: who am I, how do the ranks meet, where do log lines and signals go.

A rank can be started by the `deepspeed` launcher, by `torchrun`, by `srun` (one task per rank)
or by plain `python`; `RankInfo.from_environment` reads all four and `init_distributed` joins the
ranks through DeepSpeed. DeepSpeed is imported inside functions: importing it takes seconds, and
`DS_ACCELERATOR` has to be set before.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import random
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout  # there is no public one

from autoselect.config import ConfigError
from autoselect.ranks import rank_zero
from autoselect.ranks.judge import RankLostError

EXIT_PREEMPTED = 75
"""Exit code after a signal and a complete checkpoint (EX_TEMPFAIL): the same command goes on."""

DEFAULT_PORT = 29500
COLLECTIVE_TIMEOUT_S = 90.0
"""Longest wait of a rank for the others, in seconds; a stalled rank ends the run after it."""

LOADING_TIMEOUT_S = 3600.0
"""Longest wait while a model is loaded, in seconds: one rank may read it from a cold disk."""

MEETING_TIMEOUT_S = 600.0
"""Longest wait for all ranks to come, in seconds: some read the program from a cold disk."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankInfo:
    """Place of this process among all processes of the run."""

    rank: int
    world_size: int
    local_rank: int
    source: str

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> RankInfo:
        """Reads the variables of the deepspeed launcher, torchrun or srun.

        RANK and WORLD_SIZE (deepspeed, torchrun) win over SLURM_PROCID and SLURM_NTASKS (srun);
        with neither the run is a single process. Slurm's variables count only inside a step
        (SLURM_STEP_ID is set): the batch shell has them too and is no rank.

        Raises:
            ConfigError: half of a pair is set, a value is no integer, or a rank is out of range.
        """
        if "RANK" in environment or "WORLD_SIZE" in environment:
            names, source = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "launcher"
        elif "SLURM_PROCID" in environment and _in_slurm_step(environment):
            names, source = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), "slurm"
        else:
            return cls(rank=0, world_size=1, local_rank=0, source="single")
        rank, world_size, local_rank = (_integer(environment, name) for name in names)
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"{names[0]}={rank} is outside 0..{world_size - 1} ({names[1]}={world_size}); "
                "start every rank through one launcher"
            )
        return cls(rank, world_size, local_rank, source)


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    return environment.get("SLURM_STEP_ID", "").isdigit()


def _integer(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None:
        raise ConfigError(
            f"{name} is not set although another variable of its launcher is; use the deepspeed "
            "launcher, torchrun or srun, or unset RANK and WORLD_SIZE for a single process"
        )
    if not value.isdigit():
        raise ConfigError(f"{name}={value!r} is no non-negative integer; let the launcher set it")
    return int(value)


def set_accelerator_default() -> None:
    """Tells DeepSpeed to use the CPU when no CUDA device is visible, unless the user chose."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def choose_device(info: RankInfo) -> torch.device:
    """Device of this rank: its own GPU where there is one, else the CPU.

    Raises:
        ConfigError: more ranks on this machine than visible GPUs.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # srun with --gpus-per-task=1 shows every task one GPU, as device 0.
    index = 0 if count == 1 and info.source == "slurm" else info.local_rank
    if index >= count:
        raise ConfigError(
            f"local rank {info.local_rank} has no GPU: {count} visible on {socket.gethostname()}; "
            "start one rank per GPU (deepspeed --num_gpus, srun --ntasks-per-node)"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def init_distributed(
    info: RankInfo,
    device: torch.device,
    timeout_s: float = COLLECTIVE_TIMEOUT_S,
    meeting_s: float = MEETING_TIMEOUT_S,
) -> None:
    """Joins the ranks: gloo between CPUs, NCCL between GPUs.

    Args:
        info: this rank.
        device: its device; decides the backend.
        timeout_s: longest wait for other ranks in collectives, in seconds.
        meeting_s: longest wait until all ranks are there, in seconds.

    Raises:
        ConfigError: the rendezvous port is in use.
        RankLostError: the other ranks did not come in time.
    """
    set_accelerator_default()
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    import deepspeed  # before a free port is chosen: it takes seconds

    environment = _rendezvous(info, device)
    os.environ.update(environment)
    # Only DeepSpeed's inference uses this op. Compiling it takes a minute at the first start, and a
    # run that is killed meanwhile leaves a lock behind that makes every later start wait for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, patience = "nccl" if device.type == "cuda" else "gloo", timedelta(seconds=timeout_s)
    try:
        dist.init_process_group(
            backend,
            store=_meet(info, timedelta(seconds=meeting_s), patience),
            rank=info.rank,
            world_size=info.world_size,
            timeout=patience,
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise _not_met(error, environment, info, meeting_s) from error
    deepspeed.init_distributed(
        dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=patience
    )
    rank_zero.prepare()


def _meet(info: RankInfo, longest: timedelta, patience: timedelta) -> dist.Store:
    """Waits until all ranks are there; `patience` is the store's from then on."""
    store, _, _ = next(iter(dist.rendezvous("env://", info.rank, info.world_size, timeout=longest)))
    store.set_timeout(patience)
    return store


@contextmanager
def patient_collectives(
    inside_s: float = LOADING_TIMEOUT_S, after_s: float = COLLECTIVE_TIMEOUT_S
) -> Iterator[None]:
    """Inside, collectives wait longer: at ZeRO-3 a model is loaded with one for every module.

    A rank that dies is noticed by the heartbeat meanwhile.

    Args:
        inside_s: longest wait inside, in seconds.
        after_s: longest wait afterwards, in seconds.
    """
    if not dist.is_initialized():
        yield
        return
    _set_pg_timeout(timedelta(seconds=inside_s))
    try:
        yield
    finally:
        _set_pg_timeout(timedelta(seconds=after_s))


def shutdown_distributed() -> None:
    """Leaves the group together (a collective); call it at the end of a run that went well.

    A rank that exits while others still talk to it makes them die in native code, and a run
    that was complete would end with their exit code.
    """
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process with an exit code, without tearing down the interpreter.

    Threads of gloo outlive `destroy_process_group` while DeepSpeed refers to a group. One that
    releases the tensor of a finished collective waits for the interpreter's lock; if the
    interpreter is torn down meanwhile, the thread aborts the process (SIGABRT).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _rendezvous(info: RankInfo, device: torch.device) -> dict[str, str]:
    """The five variables that torch.distributed reads, whoever started this rank.

    DeepSpeed takes LOCAL_RANK for the number of the GPU, which may be another one under Slurm.
    """
    if info.source == "slurm" and "MASTER_ADDR" not in os.environ and info.world_size > 1:
        raise ConfigError(
            "MASTER_ADDR is not set in this Slurm step; export the address of the first node "
            "before srun, as slurm/train.sh does"
        )
    alone = info.source == "single"
    port = str(_free_port()) if alone else str(DEFAULT_PORT)
    return {
        "RANK": str(info.rank),
        "WORLD_SIZE": str(info.world_size),
        "LOCAL_RANK": str(info.local_rank if device.index is None else device.index),
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": port if alone else os.environ.get("MASTER_PORT") or port,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _not_met(
    error: Exception, environment: dict[str, str], info: RankInfo, meeting_s: float
) -> ConfigError | RankLostError:
    port, address = environment["MASTER_PORT"], environment["MASTER_ADDR"]
    if "EADDRINUSE" in str(error) or os.strerror(errno.EADDRINUSE) in str(error):
        return ConfigError(
            f"MASTER_PORT={port} is already in use on {socket.gethostname()}, probably by another "
            "run; choose a free one with deepspeed --master_port PORT or MASTER_PORT=PORT"
        )
    return RankLostError(
        f"rank {info.rank} of {info.world_size} could not meet the others at {address}:{port} "
        f"within {meeting_s:.0f} s; check that every rank was started and that MASTER_ADDR and "
        f"MASTER_PORT are reachable from {socket.gethostname()} ({error})"
    )


def setup_logging(info: RankInfo | None = None, level: int = logging.INFO) -> None:
    """Sends log lines to standard error: rank 0 from `level`, the other ranks from WARNING.

    Every line starts with time and level; lines of ranks other than 0 name their rank and host.

    Args:
        info: this rank; None while it is not known yet.
        level: of rank 0.
    """
    who = "" if info is None or info.is_main else f"[rank {info.rank} {socket.gethostname()}] "
    logging.basicConfig(
        level=logging.WARNING if who else level,
        format=f"%(asctime)s %(levelname)s {who}%(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    # DeepSpeed calls names that this torch is about to drop: thousands of equal lines.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    for noisy in ("DeepSpeed", "torch.distributed", "urllib3", "matplotlib", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch the same on every rank.

    What must differ between samples is keyed by sample id (order, noise), never by rank.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def any_true(flag: bool, device: torch.device) -> bool:
    """True when `flag` is true on at least one rank (a collective: all ranks call it)."""
    value = torch.tensor([float(flag)], device=device)
    if dist.is_initialized():
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


class SignalFlag:
    """Remembers SIGTERM and SIGUSR1 so that the run ends after the step it is in.

    `raised_anywhere` is asked once per step by all ranks: a signal on one rank stops all of them
    at the same step, with one checkpoint.

    Args:
        met: whether the ranks have met. Until `ranks_met` SIGTERM ends the process, as it does by
            default: launchers send it to ranks that would wait in vain for one that failed.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, met: bool = True) -> None:
        self.received: signal.Signals | None = None
        signal.signal(signal.SIGUSR1, self._remember)
        if met:
            self.ranks_met()

    def ranks_met(self) -> None:
        """From now on SIGTERM is remembered, too."""
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)

    def raised_anywhere(self, device: torch.device) -> bool:
        return any_true(self.received is not None, device)
