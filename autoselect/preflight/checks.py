"""The checks of `autoselect doctor` for a training run: functions that return a `Finding`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.destinations import existing
from autoselect.preflight.epochs_check import check_epochs
from autoselect.preflight.estimates import BYTES, GIB, Assumptions, Estimate
from autoselect.preflight.finding import Finding, Machine, Subject
from autoselect.preflight.machine_checks import check_extension, check_packages, check_port
from autoselect.preflight.model_check import check_model
from autoselect.preflight.output_check import check_output
from autoselect.preflight.plan import GPUS, stage_advice, visible_gpu
from autoselect.preflight.shards_check import check_shards
from autoselect.preflight.surroundings import check_environment, check_launch
from autoselect.preflight.tracking_check import check_tracking
from autoselect.reference.resources import resolve_model
from autoselect.training.budgets import check_budgets
from autoselect.vlm.shape import VLMShape, read_shape

SPARE_BYTES = 2 * GIB
"""Disk space for logs, figures and the tracking database."""

MOMENTS = 3
"""Numbers per trained parameter in a checkpoint: weight and two moments, float32."""

NOISE_BYTES_PER_CHANNEL = 4 * (64 + 2)
"""Token statistics in a checkpoint: mean, deviation, and a factor of the largest rank."""


def check_disk(subject: Subject) -> Finding:
    """Compare free space with all checkpoints (one more than are kept), the export and logs."""
    shape = _shape(subject)
    count = Estimate(shape, subject.config).trained_parameters
    gated = shape.width_at(subject.config.gate.site)
    one = 4 * MOMENTS * count + NOISE_BYTES_PER_CHANNEL * gated
    needed = one * (subject.config.keep_checkpoints + 1) + 4 * count + SPARE_BYTES
    place = existing(Path(subject.config.output))
    free = shutil.disk_usage(place).free
    found = (
        f"{free / GIB:.1f} GiB free at {place}; {needed / GIB:.1f} needed "
        f"({subject.config.keep_checkpoints + 1} checkpoints of {one / GIB:.2f})"
    )
    files = os.statvfs(place)
    if files.f_files and not files.f_favail:
        fix = "remove files that nobody needs, or choose another `output`"
        return Finding("disk", "fail", f"no further file can be created at {place}", fix)
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
    """Check that budgets < visual tokens < longest row."""
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
    varied = subject.machine.visual_tokens is not None
    try:
        check_budgets(subject.config, None if varied else shape.visual_tokens)
    except ConfigError as error:
        return Finding("budget", "fail", str(error), "correct these budgets")
    return Finding("budget", "ok", found)


def check_memory(subject: Subject) -> Finding:
    """Compare GPU memory with the worst micro-batch of `autoselect plan`."""
    machine = subject.machine
    gib = machine.gpu_memory
    if gib is None and machine.gpu is not None:
        gib = GPUS[machine.gpu].memory_gib
    if gib is None and (visible := visible_gpu()):
        _, gib = visible
    if gib is None:
        fix = "name the kind that will train: --gpu h100, or --gpu-memory GIB"
        return Finding("memory", "warn", "no GPU is visible here", fix)
    config = subject.config
    have = Assumptions(weight_bytes=BYTES[config.dtype])
    estimate = Estimate(_shape(subject), config, have)
    micro = subject.deepspeed.split(machine.gpus).micro
    stage = _stage(subject.deepspeed)
    if stage == "0":
        return Finding("memory", "warn", "ZeRO is off; the plan knows stages 1 to 3", "")
    usual, need = (
        estimate.memory(stage, machine.gpus, batch).total / GIB
        for batch in (estimate.typical_batch(micro), estimate.worst_batch(micro))
    )
    found = (
        f"about {need:.1f} of {gib:.1f} GiB per device at ZeRO stage {stage} with rows of "
        f"data.max_text_tokens={config.data.max_text_tokens}; {usual:.1f} with typical ones"
    )
    if need <= gib:
        return Finding("memory", "ok", found)
    fits = estimate.smallest_stage(machine.gpus, micro, gib)
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
    check_environment,
    check_launch,
    check_port,
)
NEED_MODEL = ("disk", "budget", "memory")
"""Checks that read the model's configuration."""

RUN_CHECKS: tuple[tuple[str, Callable[[Subject], Finding]], ...] = (
    ("tracking", check_tracking),
    ("model", check_model),
    ("shards", check_shards),
    ("epochs", check_epochs),
    ("output", check_output),
    ("disk", check_disk),
    ("budget", check_budget),
    ("memory", check_memory),
)
