"""Checks of `autoselect doctor` that need no training run: packages, extension, port."""

from __future__ import annotations

import socket
from importlib import metadata

import torch
from packaging.requirements import Requirement

from autoselect.preflight.finding import Finding, Machine

EXTRAS = ("", "tracking", "data", "evaluation", "training")
"""The extra `training` and those that it includes; "" stands for no extra."""


def check_packages(machine: Machine) -> Finding:
    """Compare installed versions with what a training run requires of this package."""
    wrong = []
    for line in metadata.requires("autoselect") or []:
        need = Requirement(line)
        if need.name == "autoselect" or not _is_needed(need):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version} is not {need.specifier}")
    if wrong:
        return Finding(
            "packages",
            "fail",
            "; ".join(wrong),
            "run `make setup`, or pip install -r requirements.lock",
        )
    return Finding(
        "packages",
        "ok",
        ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "transformers", "deepspeed")),
    )


def _is_needed(need: Requirement) -> bool:
    """Return True for a requirement of the package itself or of an extra that training uses."""
    return need.marker is None or any(need.marker.evaluate({"extra": name}) for name in EXTRAS)


def check_extension(machine: Machine) -> Finding:
    """Check that the native operators are built, load, and fit the visible GPUs."""
    build = "pip install --no-build-isolation -e . (see `autoselect info`)"
    try:
        from autoselect.ops import build_info, runs_on

        info = build_info()
    except ImportError as error:
        return Finding("extension", "fail", str(error), build)
    if not info["native"]:
        found = f"{info['missing']}; the slower PyTorch references would run"
        return Finding("extension", "warn", found, build)
    architectures = str(info["cuda_architectures"])
    if torch.cuda.is_available() and not architectures:
        found = "autoselect._C is built without CUDA, but a GPU is visible"
        return Finding("extension", "warn", found, f"FORCE_CUDA=1 {build}")
    for number in range(torch.cuda.device_count() if architectures else 0):
        capability = torch.cuda.get_device_capability(number)
        if not runs_on(architectures, capability):
            own = "{}.{}".format(*capability)
            found = (
                f"autoselect._C is built for CUDA architectures {architectures}, which have no "
                f"kernel for GPU {number} of capability {own}"
            )
            fix = f"FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST='{architectures};{own}' {build}"
            return Finding("extension", "fail", found, fix)
    kind = f"CUDA ({architectures}) and CPU" if architectures else "CPU"
    return Finding("extension", "ok", f"built for {kind}")


def check_port(machine: Machine) -> Finding:
    """Check that rank 0 can listen on this host."""
    fix = "choose another: deepspeed --master_port PORT, or MASTER_PORT=PORT"
    if not 1 <= machine.port <= 65535:
        return Finding("port", "fail", f"{machine.port} is not a port; those are 1..65535", fix)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", machine.port))
        except OSError as error:
            found = f"{machine.port} cannot be used on {socket.gethostname()}: {error.strerror}"
            return Finding("port", "fail", found, fix)
    return Finding("port", "ok", f"{machine.port} is free on {socket.gethostname()}")
