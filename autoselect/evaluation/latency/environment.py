"""Machine and package versions of a measurement."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "webdataset", "mlflow", "deepspeed")


def environment(device: torch.device | str | None = None) -> dict[str, Any]:
    """Return processor or GPU, threads, operating system, versions and the git commit.

    Args:
        device: where the measurement ran; None for the GPU in use if PyTorch sees one. The clocks
            of a GPU are read now: call this right after the timed code.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    clocks = gpu_clocks(where)
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if where.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(where)
        facts["gpu_clocks"] = clocks
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    facts["git_commit"] = git_commit()
    return facts


def gpu_clocks(device: torch.device) -> str | None:
    """Return the clocks of a GPU's multiprocessors and memory; None for a CPU, or if unknown.

    The GPU is found by its UUID: CUDA and nvidia-smi may number the GPUs differently.
    """
    if device.type != "cuda":
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"]
    return _command(["nvidia-smi", f"--id={uuid}", *query])


def git_commit() -> str | None:
    root = Path(__file__).resolve().parents[3]
    return _command(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _command(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
