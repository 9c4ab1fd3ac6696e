"""The checks of `autoselect doctor`: functions that return a `Finding`."""

from __future__ import annotations

import os
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.destinations import cannot_write, existing
from autoselect.preflight.estimates import (
    BYTES,
    GIB,
    Assumptions,
    memory,
    smallest_stage,
    trained_parameters,
    typical_batch,
    worst_batch,
)
from autoselect.preflight.finding import Finding, Machine, Subject
from autoselect.preflight.model_check import WAIT_S, check_model
from autoselect.preflight.plan import GPUS, stage_advice
from autoselect.preflight.shards_check import check_shards
from autoselect.reference.resources import resolve_model
from autoselect.vlm.shape import VLMShape, read_shape

SPARE_BYTES = 2 * GIB
"""Disk space for logs, figures and the tracking database."""

MOMENTS = 3
"""Numbers per trained parameter in a checkpoint: weight and two moments, float32."""

NOISE_BYTES_PER_CHANNEL = 4 * (64 + 2)
"""Token statistics in a checkpoint: mean, deviation, and a factor of the largest rank."""


def check_packages(machine: Machine) -> Finding:
    """Compare installed versions with the requirements of this package."""
    wrong = []
    for line in metadata.requires("autoselect") or []:
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
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


def check_extension(machine: Machine) -> Finding:
    """Check that the native operators are built, load, and fit the visible GPUs."""
    build = "pip install --no-build-isolation -e . (see `autoselect info`)"
    try:
        from autoselect.ops import build_info, runs_on

        info = build_info()
    except ImportError as error:
        return Finding("extension", "fail", f"autoselect._C does not load: {error}", build)
    if not info["native"]:
        found = "autoselect._C is not built; the slower PyTorch references would run"
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


def check_tracking(subject: Subject) -> Finding:
    """Check that the tracking server answers, or that the local store can be written."""
    if not subject.config.tracking:
        return Finding("tracking", "ok", "tracking is off")
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        where = uri or f"sqlite in {Path.cwd()}"
        path = Path(uri.removeprefix("sqlite:///").removeprefix("file://")) if uri else Path("x")
        error = cannot_write(path.parent)
        if error:
            fix = "start from a folder that can be written, or set MLFLOW_TRACKING_URI"
            return Finding("tracking", "fail", f"{where}: {error}", fix)
        return Finding("tracking", "ok", where)
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=WAIT_S):
            return Finding("tracking", "ok", f"{uri} answers")
    except urllib.error.HTTPError as error:
        found = f"{uri} answers with {error.code}"
        return Finding("tracking", "warn", found, "check the address and MLFLOW_TRACKING_TOKEN")
    except (OSError, ValueError) as error:
        return Finding(
            "tracking",
            "fail",
            f"MLFLOW_TRACKING_URI={uri} does not answer: {error}",
            "start the server, correct MLFLOW_TRACKING_URI, or set tracking: false",
        )


def check_output(subject: Subject) -> Finding:
    """Check that the run folder can be written, and warn if it holds a run."""
    output = Path(subject.config.output)
    error = cannot_write(output)
    if error:
        fix = "choose another `output`, or make the folder writable"
        return Finding("output", "fail", f"{output}: {error}", fix)
    if (output / "checkpoints" / "latest").is_file():
        step = (output / "checkpoints" / "latest").read_text().strip()
        fix = "choose another `output` to start afresh"
        return Finding("output", "warn", f"{output} holds a run; it resumes at {step}", fix)
    return Finding("output", "ok", f"{output} can be written")


def check_disk(subject: Subject) -> Finding:
    """Compare free space with all checkpoints (one more than are kept), the export and logs."""
    shape = _shape(subject)
    count = trained_parameters(shape, subject.config)
    gated = shape.width_at(subject.config.gate.site)
    one = 4 * MOMENTS * count + NOISE_BYTES_PER_CHANNEL * gated
    needed = one * (subject.config.keep_checkpoints + 1) + 4 * count + SPARE_BYTES
    place = existing(Path(subject.config.output))
    free = shutil.disk_usage(place).free
    found = (
        f"{free / GIB:.1f} GiB free at {place}; {needed / GIB:.1f} needed "
        f"({subject.config.keep_checkpoints + 1} checkpoints of {one / GIB:.2f})"
    )
    if free < needed:
        fix = "free some space, choose another `output`, or lower keep_checkpoints"
        return Finding("disk", "fail", found, fix)
    return Finding("disk", "ok", found)


@cache
def _read_shape(model: str, visual_tokens: int | None) -> VLMShape:
    return read_shape(resolve_model(model), visual_tokens)


def _shape(subject: Subject) -> VLMShape:
    return _read_shape(subject.config.model, subject.machine.visual_tokens)


def check_budget(subject: Subject) -> Finding:
    """Check that budget < visual tokens < longest row."""
    shape, budget = _shape(subject), subject.config.gate.token_budget
    found = f"{budget} of {shape.visual_tokens} visual tokens"
    longest = subject.config.data.max_text_tokens
    if shape.visual_tokens >= longest:
        found += f": data.max_text_tokens={longest} has no room for them and an answer"
        fix = f"raise data.max_text_tokens above {shape.visual_tokens}, by as much as texts take"
        return Finding("budget", "fail", found, fix)
    if budget >= shape.visual_tokens:
        fix = f"choose gate.token_budget below {shape.visual_tokens}"
        return Finding("budget", "fail", f"{found}: nothing would be removed", fix)
    return Finding("budget", "ok", found)


def check_memory(subject: Subject) -> Finding:
    """Compare GPU memory with the worst micro-batch of `autoselect plan`."""
    machine = subject.machine
    gib = machine.gpu_memory
    if gib is None and machine.gpu is not None:
        gib = GPUS[machine.gpu].memory_gib
    if gib is None and torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / GIB
    if gib is None:
        fix = "name the kind that will train: --gpu h100, or --gpu-memory GIB"
        return Finding("memory", "warn", "no GPU is visible here", fix)
    shape, config = _shape(subject), subject.config
    have = Assumptions(weight_bytes=BYTES[config.dtype])
    micro = subject.deepspeed.split(machine.gpus).micro
    stage = _stage(subject.deepspeed)
    if stage == "0":
        return Finding("memory", "warn", "ZeRO is off; the plan knows stages 1 to 3", "")
    usual, need = (
        memory(shape, stage, machine.gpus, batch, config, have).total / GIB
        for batch in (
            typical_batch(shape, micro, have),
            worst_batch(shape, micro, config, have),
        )
    )
    found = (
        f"about {need:.1f} of {gib:.1f} GiB per device at ZeRO stage {stage} with rows of "
        f"data.max_text_tokens={config.data.max_text_tokens}; {usual:.1f} with typical ones"
    )
    if need <= gib:
        return Finding("memory", "ok", found)
    fits = smallest_stage(shape, machine.gpus, micro, config, have, gib)
    ways = [f"use {stage_advice(subject.source, fits)}" if fits else "use more devices"]
    if not config.activation_checkpointing:
        ways.append("activation_checkpointing: true")
    fix = f"{', '.join(ways)}, a smaller micro batch, or a smaller data.max_text_tokens"
    return Finding("memory", "fail", found, fix)


def _stage(deepspeed: DeepSpeedConfig) -> str:
    """Return the name of the ZeRO stage in `STAGES`."""
    stage = str(deepspeed.zero_stage)
    return f"{stage}_offload" if deepspeed.offloads_parameters else stage


MACHINE_CHECKS: tuple[Callable[[Machine], Finding], ...] = (
    check_packages,
    check_extension,
    check_port,
)
NEED_MODEL = ("disk", "budget", "memory")
"""Checks that read the model's configuration."""

RUN_CHECKS: tuple[tuple[str, Callable[[Subject], Finding]], ...] = (
    ("tracking", check_tracking),
    ("model", check_model),
    ("shards", check_shards),
    ("output", check_output),
    ("disk", check_disk),
    ("budget", check_budget),
    ("memory", check_memory),
)
