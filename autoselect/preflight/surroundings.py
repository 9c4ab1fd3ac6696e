"""Checks of the process's surroundings for `autoselect doctor`: folders, limits, launcher."""

from __future__ import annotations

import codecs
import locale
import os
import resource
import socket
import tempfile
from pathlib import Path

import torch

from autoselect.config import ConfigError
from autoselect.config.destinations import cannot_write
from autoselect.preflight.finding import Finding, Machine, Status
from autoselect.ranks.rank_info import RankInfo

LIBRARIES = ("torch", "transformers", "deepspeed", "mlflow", "numpy", "webdataset", "autoselect")
"""Packages that must come from this environment."""
OPEN_FILES = 1024
"""Files that shards, workers and sockets of one rank may hold open."""

Fault = tuple[Status, str, str]


def check_environment(machine: Machine) -> Finding:
    """Check folders for temporary files and caches, foreign packages, limits and encoding."""
    faults = [fault for look in (_temporary, _home, _foreign, _limits) for fault in look()]
    return _finding("environment", faults, "temporary files, home, packages and limits suit")


def check_launch(machine: Machine) -> Finding:
    """Check what this shell tells a launcher: ranks, Slurm's tasks and cores, address, device."""
    faults = [fault for look in (_ranks, _address, _device) for fault in look()]
    faults += _slurm(machine)
    return _finding("launch", faults, "no variable stands in the way of a launcher")


def _finding(name: str, faults: list[Fault], well: str) -> Finding:
    if not faults:
        return Finding(name, "ok", well)
    status: Status = "fail" if any(fault[0] == "fail" for fault in faults) else "warn"
    found, fix = ("; ".join(fault[part] for fault in faults) for part in (1, 2))
    return Finding(name, status, found, fix)


def _temporary() -> list[Fault]:
    named = os.environ.get("TMPDIR", "")
    if named and (not Path(named).is_dir() or cannot_write(Path(named))):
        fix = "create the folder, or set TMPDIR to one that can be written"
        return [("fail", f"TMPDIR={named} is not a folder that can be written", fix)]
    try:
        tempfile.gettempdir()
    except OSError as error:
        fix = "free some space in /tmp, or set TMPDIR to a folder that can be written"
        return [("fail", f"no folder takes temporary files ({error.strerror})", fix)]
    return []


def _home() -> list[Fault]:
    why = cannot_write(Path.home())
    if not why:
        return []
    hub = os.environ.get("HF_HOME") or os.environ.get("HF_HUB_CACHE")
    if hub:
        return []
    found = f"the home folder cannot be written ({why}), so nothing can be downloaded from the hub"
    return [("warn", found, "set HF_HOME to a folder that can be written")]


def _foreign() -> list[Fault]:
    """Look for folders of PYTHONPATH, except a checkout of this project, that hold a library."""
    own = Path(__file__).resolve().parents[2]
    for folder in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        for name in LIBRARIES:
            place = Path(folder, name)
            if Path(folder).resolve() != own and (place / "__init__.py").is_file():
                found = f"PYTHONPATH={folder} puts another {name} before that of this environment"
                return [("fail", found, "unset PYTHONPATH")]
    return []


def _limits() -> list[Fault]:
    faults: list[Fault] = []
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        found = f"only {soft} files may be open at the same time, shards and workers may need more"
        faults.append(("warn", found, f"ulimit -n {4 * OPEN_FILES}"))
    encoding = locale.getpreferredencoding(False)
    if codecs.lookup(encoding).name != "utf-8":
        found = f"text files are read as {encoding}, but those of this project are UTF-8"
        faults.append(("fail", found, "export LC_ALL=C.UTF-8"))
    return faults


def _ranks() -> list[Fault]:
    variables = "RANK WORLD_SIZE LOCAL_RANK"
    try:
        info = RankInfo.from_environment()
    except ConfigError as error:
        return [("fail", str(error), f"unset {variables}")]
    if info.source == "launcher" and info.world_size > 1:
        found = f"this shell is already rank {info.rank} of {info.world_size} (RANK, WORLD_SIZE)"
        return [("warn", found, f"unset {variables}, unless a launcher started this")]
    return []


def _address() -> list[Fault]:
    named = os.environ.get("MASTER_ADDR")
    if not named:
        return []
    try:
        socket.getaddrinfo(named, None)
    except OSError as error:
        fix = "set MASTER_ADDR to the address of the first node, or unset it"
        return [("fail", f"MASTER_ADDR={named} does not resolve: {error.strerror}", fix)]
    return []


def _device() -> list[Fault]:
    if os.environ.get("DS_ACCELERATOR") == "cuda" and not torch.cuda.is_available():
        found = "DS_ACCELERATOR=cuda, but no GPU is visible here"
        return [("fail", found, "unset DS_ACCELERATOR, or run this on a node with a GPU")]
    return []


def _slurm(machine: Machine) -> list[Fault]:
    """Compare an allocation with --gpus; outside Slurm nothing is wrong."""
    tasks = os.environ.get("SLURM_NTASKS", "")
    if "SLURM_JOB_ID" not in os.environ or not tasks.isdigit() or int(tasks) == machine.gpus:
        return []
    found = f"this Slurm job has {tasks} tasks, but --gpus={machine.gpus} devices are to train"
    return [("warn", found, "ask for one task per device, or give the number of tasks as --gpus")]
