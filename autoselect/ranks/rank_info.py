"""The number of this process among the ranks of a run, as its launcher says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from autoselect.config import ConfigError

LAST_STEP = 0xFFFFFFEF
"""Largest id of a step of `srun`. Those above are Slurm's own, such as the shell of `salloc`."""
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE")
"""Number of processes in the variables of Open MPI, MVAPICH and MPICH."""


@dataclass(frozen=True)
class RankInfo:
    """Number of this process, globally and on its machine; `source` is what started it."""

    rank: int
    world_size: int
    local_rank: int
    source: str

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> RankInfo:
        """Read the variables of the deepspeed launcher, torchrun or srun.

        RANK and WORLD_SIZE (deepspeed, torchrun) win over SLURM_PROCID and SLURM_NTASKS (srun).
        The latter count only for a task of `srun`. The batch shell of `sbatch`, and the shell of
        `salloc` or `srun --pty` in which a person types, have them too, but what is started there
        is not a rank. Without any of them the run is a single process.

        Raises:
            ConfigError: half of a pair is set, a value is not an integer, or out of range; or this
                is one of several processes of mpirun, which would each start a run of its own.
        """
        if "RANK" in environment or "WORLD_SIZE" in environment:
            names, source = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "launcher"
        elif "SLURM_PROCID" in environment and _is_slurm_task(environment):
            # SLURM_NTASKS may be that of the job in which the step runs.
            own = "SLURM_STEP_NUM_TASKS"
            count = own if own in environment else "SLURM_NTASKS"
            names, source = ("SLURM_PROCID", count, "SLURM_LOCALID"), "slurm"
        else:
            for name in MPI_SIZES:
                # A shell of `srun --pty` may have the size of its step.
                if environment.get(name, "1") != "1" and "SLURM_PTY_PORT" not in environment:
                    raise ConfigError(
                        f"{name}={environment[name]}: processes of mpirun are not taken as ranks; "
                        "start them with the deepspeed launcher, torchrun or srun"
                    )
            return cls(rank=0, world_size=1, local_rank=0, source="single")
        rank, world_size, local_rank = (_integer(environment, name) for name in names)
        if not 0 <= rank < world_size:
            raise ConfigError(
                f"{names[0]}={rank} is outside 0..{world_size - 1} ({names[1]}={world_size}); "
                "start every rank through one launcher"
            )
        return cls(rank, world_size, local_rank, source)


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
    """Return True for a task of `srun`, False in a batch shell and in an interactive one."""
    step = environment.get("SLURM_STEP_ID", "")
    if not step.isdigit() or int(step) > LAST_STEP:
        return False
    by_hand = "SLURM_PTY_PORT" in environment and os.isatty(0)
    return not by_hand or environment.get("SLURM_TASK_PID") == str(os.getpid())


def _integer(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None:
        raise ConfigError(
            f"{name} is not set although another variable of its launcher is; use the deepspeed "
            "launcher, torchrun or srun, or unset RANK and WORLD_SIZE for a single process"
        )
    if not value.isdigit():
        raise ConfigError(f"{name}={value!r} is not a number from 0 on; let the launcher set it")
    return int(value)
