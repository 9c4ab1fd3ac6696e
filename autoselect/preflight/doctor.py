"""`autoselect doctor`: checks everything but compute before a training run starts.

Each check reports what it found and, if something is wrong, how to correct it. Nothing is trained
and, without `--removal-images`, of weights only a run's own checkpoints are read whole. The only
files written are a probe file, which is removed again, and the configuration of a hub model, in the
hub's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from functools import partial

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import load_config
from autoselect.config.flags import check_counts
from autoselect.config.programs import DEFAULT_PORT
from autoselect.preflight.checks import MACHINE_CHECKS, NEED_MODEL, RUN_CHECKS
from autoselect.preflight.finding import Finding, Machine, Subject
from autoselect.preflight.removal_check import check_removal
from autoselect.training.zero_settings import check_zero

REMOVAL = "removal"
MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def read_configuration(
    path: str | None, flags: list[str], deepspeed: str, machine: Machine
) -> tuple[list[Finding], Subject | None]:
    """Read and check both configurations as training does."""
    findings = []
    config = None
    try:
        config = load_config(TrainConfig, path, flags)
        findings.append(Finding("config", "ok", f"{path or 'defaults'}: {config.steps} steps"))
    except ConfigError as error:
        findings.append(_refused("config", error, f"correct {path or 'the flags'}"))
    try:
        settings = DeepSpeedConfig.load(deepspeed)
        check_zero(settings)
        sizes = settings.split(machine.gpus)
        found = f"{deepspeed}: {sizes.total} = {sizes.micro} x {machine.gpus} devices"
        findings.append(Finding("deepspeed", "ok", f"{found} x {sizes.accumulation} accumulated"))
    except ConfigError as error:
        findings.append(
            _refused("deepspeed", error, f"correct {deepspeed}, or give another number of --gpus")
        )
        return findings, None
    return findings, None if config is None else Subject(config, settings, deepspeed, machine)


def _refused(name: str, error: ConfigError, fix: str) -> Finding:
    return Finding(name, "fail", str(error), fix)


def examine(
    path: str | None, flags: list[str], deepspeed: str, machine: Machine, removal_images: int = 0
) -> list[Finding]:
    """Make all checks, in the order in which a run would meet the problems.

    With `removal_images` the model runs on so many training samples, see `check_removal`.
    """
    findings, subject = read_configuration(path, flags, deepspeed, machine)
    findings += [check(machine) for check in MACHINE_CHECKS]
    if subject is None:
        skipped = ", ".join(name for name, _ in RUN_CHECKS)
        findings.append(
            Finding(
                "run", "warn", f"not examined: {skipped}", "correct the configuration, then repeat"
            )
        )
        return findings
    checks = list(RUN_CHECKS)
    if removal_images:
        checks.append((REMOVAL, partial(check_removal, images=removal_images)))
    for name, check in checks:
        broken = any(f.name == "model" and f.status == "fail" for f in findings)
        if broken and name in (*NEED_MODEL, REMOVAL):
            found = "not examined: it needs the model's configuration"
            findings.append(Finding(name, "warn", found, "correct the model, then repeat"))
        else:
            findings.append(_guarded(name, check, subject))
    return findings


def _guarded(name: str, check: Callable[[Subject], Finding], subject: Subject) -> Finding:
    """Make one check; a ConfigError becomes a failed finding, as its message has rule and fix."""
    try:
        return check(subject)
    except ConfigError as error:
        return Finding(name, "fail", str(error), f"correct what {name} names, or its files")


def table(findings: list[Finding]) -> str:
    """Return the findings as text, with their counts in the last line."""
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.status]}  {finding.name:<11} {finding.found}")
        if finding.fix:
            lines.append(f"{'':17} -> {finding.fix}")
    bad = sum(finding.status == "fail" for finding in findings)
    doubtful = sum(finding.status == "warn" for finding in findings)
    lines.append(f"{len(findings)} checks: {bad} failed, {doubtful} with a warning")
    return "\n".join(lines)


def meeting_port() -> int:
    """Return MASTER_PORT, or the default port if it is unset or empty.

    Raises:
        ConfigError: MASTER_PORT is not a whole number.
    """
    named = os.environ.get("MASTER_PORT") or DEFAULT_PORT
    try:
        return int(named)
    except ValueError:
        raise ConfigError(
            f"MASTER_PORT={named} is not a port; set it to a number in 1..65535, or unset it"
        ) from None


def run_doctor(arguments: argparse.Namespace) -> int:
    """Make all checks and print the findings; return 1 if a check failed, else 0."""
    if arguments.removal_images < 0:
        raise ConfigError(
            f"removal_images={arguments.removal_images} must be a number of samples, 0 for none"
        )
    check_counts(gpus=arguments.gpus, visual_tokens=arguments.visual_tokens)
    if arguments.gpu_memory is not None and arguments.gpu_memory <= 0:
        raise ConfigError(f"gpu_memory={arguments.gpu_memory} must be above 0 GiB; choose 80")
    machine = Machine(
        arguments.gpus,
        arguments.gpu,
        arguments.gpu_memory,
        arguments.visual_tokens,
        meeting_port() if arguments.port is None else arguments.port,
    )
    findings = examine(
        arguments.config,
        arguments.settings,
        arguments.deepspeed,
        machine,
        arguments.removal_images,
    )
    if arguments.json:
        json.dump([vars(finding) for finding in findings], sys.stdout, indent=1)
        print()
    else:
        print(table(findings))
    return int(any(finding.status == "fail" for finding in findings))
