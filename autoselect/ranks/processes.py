"""Start of the ranks of a run: their devices, their meeting, and their log lines.

A rank is started by the `deepspeed` launcher, by `torchrun`, by `srun` (one task per rank) or by
plain `python`. DeepSpeed is imported inside functions, because that takes seconds, and because
`DS_ACCELERATOR` has to be set before.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import random
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import (
    _set_pg_timeout,  # torch has no public function for this
)

from autoselect.config import ConfigError
from autoselect.config.extras import extra
from autoselect.config.programs import DEFAULT_PORT
from autoselect.ranks import rank_zero
from autoselect.ranks.judge import RankLostError
from autoselect.ranks.rank_info import RankInfo

EXIT_PREEMPTED = 75
"""Exit code after a signal and a complete checkpoint; the same command resumes (EX_TEMPFAIL)."""

COLLECTIVE_TIMEOUT_S = 90.0
"""Longest wait in a collective, in seconds."""

LOADING_TIMEOUT_S = 3600.0
"""The same while a model is loaded, which one rank may read from a cold disk."""

MEETING_TIMEOUT_S = 600.0
"""Longest wait until all ranks have started, in seconds; some read the program from a cold disk."""

logger = logging.getLogger(__name__)


def set_accelerator_default() -> None:
    """Make DeepSpeed use the CPU if no CUDA device is visible, unless the user chose."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def choose_device(info: RankInfo) -> torch.device:
    """Return the GPU of this rank, or the CPU if no GPU is visible.

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
            "start one rank per GPU (deepspeed --num_gpus, torchrun --nproc-per-node, "
            "srun --ntasks-per-node)"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def init_distributed(
    info: RankInfo,
    device: torch.device,
    timeout_s: float = COLLECTIVE_TIMEOUT_S,
    meeting_s: float = MEETING_TIMEOUT_S,
    for_deepspeed: bool = True,
) -> None:
    """Join the ranks, by gloo between CPUs and NCCL between GPUs.

    Args:
        info: rank of this process.
        device: device of this rank; decides the backend.
        timeout_s: longest wait in a collective, in seconds.
        meeting_s: longest wait until all ranks have started, in seconds.
        for_deepspeed: prepare DeepSpeed as well, whose import takes seconds.

    Raises:
        ConfigError: the port where ranks meet is in use.
        RankLostError: not all ranks started in time.
    """
    set_accelerator_default()
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    if for_deepspeed:
        with extra("training"):
            import deepspeed  # before a free port is chosen: it takes seconds

    environment = _rendezvous(info, device)
    os.environ.update(environment)
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
    if for_deepspeed:
        # Only DeepSpeed's inference uses this op. Compiling it takes a minute at the first start,
        # and a run that is killed meanwhile leaves a lock that makes later starts wait for ever.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=patience
        )
    rank_zero.prepare()


def _meet(info: RankInfo, longest: timedelta, patience: timedelta) -> dist.Store:
    """Return the store of the group once all ranks have started; later calls wait `patience`."""
    store, _, _ = next(iter(dist.rendezvous("env://", info.rank, info.world_size, timeout=longest)))
    store.set_timeout(patience)
    return store


@contextmanager
def patient_collectives(
    inside_s: float = LOADING_TIMEOUT_S, after_s: float = COLLECTIVE_TIMEOUT_S
) -> Iterator[None]:
    """Let collectives wait `inside_s` seconds inside, and `after_s` afterwards.

    At ZeRO-3 loading a model takes a collective per module. The heartbeat still notices a rank that
    dies.
    """
    if not dist.is_initialized():
        yield
        return
    _set_pg_timeout(timedelta(seconds=inside_s))
    try:
        yield
    finally:
        if dist.is_initialized():
            _set_pg_timeout(timedelta(seconds=after_s))


def shutdown_distributed() -> None:
    """Leave the group together, at the end of a successful run (a collective).

    If a rank exited while others still talk to it, these would die in native code, and a complete
    run would end with their exit code.
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
    """Return the five variables that torch.distributed reads.

    A single process meets itself, wherever MASTER_ADDR of its shell points to.
    DeepSpeed takes LOCAL_RANK as the number of the GPU, which may be another one under Slurm.
    """
    nodes = os.environ.get("SLURM_STEP_NUM_NODES")
    several = info.source == "slurm" and info.world_size > 1 and nodes != "1"
    if several and not os.environ.get("MASTER_ADDR"):
        raise ConfigError(
            "MASTER_ADDR is not set in this Slurm step; export the address of the first node "
            "before srun, as slurm/train.sh does"
        )
    alone = info.source == "single"
    own = "127.0.0.1"
    port = str(_free_port()) if alone else os.environ.get("MASTER_PORT") or str(DEFAULT_PORT)
    if not (port.isdecimal() and 1 <= int(port) <= 65535):
        raise ConfigError(f"MASTER_PORT={port} is not a TCP port; choose 1024..65535")
    return {
        "RANK": str(info.rank),
        "WORLD_SIZE": str(info.world_size),
        "LOCAL_RANK": str(info.local_rank if device.index is None else device.index),
        "MASTER_ADDR": own if alone else os.environ.get("MASTER_ADDR") or own,
        "MASTER_PORT": port,
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


def setup_logging(info: RankInfo | None = None) -> None:
    """Send log lines to standard error: rank 0 from INFO on, other ranks from WARNING on.

    Lines of ranks other than 0 name rank and host. `info` is None while the rank is unknown.
    """
    who = "" if info is None or info.is_main else f"[rank {info.rank} {socket.gethostname()}] "
    logging.basicConfig(
        level=logging.WARNING if who else logging.INFO,
        format=f"%(asctime)s %(levelname)s {who}%(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    # DeepSpeed calls deprecated functions of torch, which log thousands of equal lines.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    for noisy in ("DeepSpeed", "torch.distributed", "urllib3", "matplotlib", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch alike on every rank; order and noise are keyed by sample."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
