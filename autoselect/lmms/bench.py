"""`autoselect bench public`: run all tasks for the full model and for every method and budget.

A cell is one task with one method and budget, and runs as one call of lmms-eval. Its result is
stored in `cells/`, so a run that was killed resumes with the next cell. A cell runs again if other
code, another dtype or another batch size would answer, and a task of the user's own if its folder
has changed.
"""

import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from autoselect.config import ConfigError
from autoselect.config.extras import missing
from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.answers.parts import read_result
from autoselect.evaluation.identity import code_version, folder_digest
from autoselect.evaluation.latency.bench import bench_prefill
from autoselect.evaluation.latency.environment import environment
from autoselect.evaluation.loading import checked_device
from autoselect.files.atomic import write_text
from autoselect.lmms.engine import FULL, parse_budget
from autoselect.lmms.report import build_public_report, public_markdown
from autoselect.lmms.settings import BASELINES, PublicSettings
from autoselect.lmms.tasks import task_score
from autoselect.lmms.tracked import PublicRecord
from autoselect.pruning.budget import check_budget
from autoselect.vlm.loading import default_dtype

logger = logging.getLogger(__name__)
LATENCY_FILE = "latency.json"


@dataclass(frozen=True)
class TaskRun:
    """One task with one method and budget; both are `full` for the unpruned model."""

    method: str
    budget: str
    task: str

    @property
    def file(self) -> str:
        return f"{self.method}@{self.budget.replace('%', 'pct')}@{self.task}.json"


def task_runs(settings: PublicSettings) -> list[TaskRun]:
    """List all task runs, those of the full model first; raise ConfigError if one cannot run."""
    methods, budgets, tasks = (
        [word.strip() for word in text.split(",") if word.strip()]
        for text in (settings.methods, settings.budgets, settings.tasks)
    )
    for method in methods:
        if method not in (SELECTOR, *BASELINES):
            raise ConfigError(
                f"methods={method!r} is unknown here; choose {SELECTOR}, {', '.join(BASELINES)}"
            )
    for budget in budgets:
        value = parse_budget(budget)
        if value is None:
            raise ConfigError("budgets=full is always run; give the smaller budgets only")
        check_budget(value)
    if not tasks or not budgets or not methods:
        raise ConfigError("tasks, budgets and methods must each hold at least one name")
    columns = [(FULL, FULL)] + [(method, budget) for budget in budgets for method in methods]
    return [TaskRun(method, budget, task) for method, budget in columns for task in tasks]


def lmms_command(settings: PublicSettings, cell: TaskRun, output: Path) -> list[str]:
    """Return the command line of lmms-eval for one cell.

    Raises:
        ConfigError: a value holds a comma or an equals sign, which lmms-eval splits at.
    """
    arguments = {"pretrained": settings.model, "budget": cell.budget}
    if cell.method == SELECTOR:
        arguments["selector"] = settings.selector
    elif cell.method != FULL:
        arguments["method"] = cell.method
    for name, value in arguments.items():
        if set(value) & set(",="):
            raise ConfigError(f"{name}={value} must hold neither a comma nor an equals sign")
    launcher = settings.launcher.split() if settings.launcher else [sys.executable]
    command = [*launcher, "-m", "lmms_eval", "--model", "autoselect"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--tasks", cell.task, "--batch_size", str(settings.batch_size)]
    command += ["--output_path", str(output)]
    for flag, given in (
        ("--include_path", settings.include),
        ("--limit", settings.limit),
        ("--device", settings.device),
    ):
        if given is not None:
            command += [flag, str(given)]
    return command


def run_cell(settings: PublicSettings, cell: TaskRun) -> dict[str, Any]:
    """Run lmms-eval for one cell; if it fails, raise ConfigError with the end of its output."""
    with tempfile.TemporaryDirectory() as folder:
        command = lmms_command(settings, cell, Path(folder))
        started = time.monotonic()
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        found = sorted(Path(folder).rglob("*_results.json"))
        if ended.returncode != 0 or not found:
            tail = "\n".join((ended.stdout + ended.stderr).strip().splitlines()[-15:])
            raise ConfigError(
                f"lmms-eval failed on {cell.task} ({cell.method}, {cell.budget}) with code "
                f"{ended.returncode}:\n{tail}\nFix the cause and start again: finished cells are "
                "kept"
            )
        results = json.loads(found[-1].read_text())["results"]
    if cell.task not in results:
        raise ConfigError(
            f"task={cell.task} has no score of its own in lmms-eval, which gave those of "
            f"{', '.join(results) or 'none'}; name tasks instead of a group of them"
        )
    score, numbers = task_score(cell.task, results[cell.task])
    seconds = time.monotonic() - started
    return {**asdict(cell), "score": score, "metrics": numbers, "seconds": seconds}


def identity(settings: PublicSettings) -> dict[str, Any]:
    """Return what finished cells depend on: model, selector, limit and version of lmms-eval.

    Raises:
        ConfigError: lmms-eval is not installed.
    """
    try:
        version = metadata.version("lmms_eval")
    except metadata.PackageNotFoundError:
        raise ConfigError(f"{missing('lmms-eval', 'bench')} (see docs/reproduce.md)") from None
    return {
        "model": _identified(settings.model),
        "selector": _identified(settings.selector),
        "limit": settings.limit,
        "lmms_eval": version,
    }


def _identified(address: str) -> str:
    """Return the digest of a folder, or a hub name itself, which may not be downloaded yet."""
    return folder_digest(address) if Path(address).is_dir() else address


def _claim(out: Path, known: dict[str, Any]) -> None:
    note = out / "cells" / "identity.json"
    text = json.dumps(known, indent=1)
    if note.exists() and note.read_text() != text:
        raise ConfigError(f"out={out} holds results of other settings ({note}); choose another")
    if not note.exists() and (out / "report.json").exists():
        raise ConfigError(f"out={out} holds a report.json of other settings; choose another folder")
    write_text(note, text)


def _write(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1))


def answering(settings: PublicSettings) -> dict[str, Any]:
    """Return what answers depend on besides the settings of the folder.

    Raises:
        ConfigError: the device does not exist.
    """
    device = torch.device(checked_device(settings.device))
    dtype, batch_size = str(default_dtype(device)), settings.batch_size
    return {"code": code_version(), "dtype": dtype, "batch_size": batch_size}


def finished_cells(
    settings: PublicSettings, answered: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the results of all cells, and run those that are missing or were answered otherwise."""
    wanted = task_runs(settings)
    digests = {task: _own_task(settings.include, task) for task in {cell.task for cell in wanted}}
    with tqdm(total=len(wanted), desc="public tasks", unit="cell", disable=None) as bar:
        for cell in wanted:
            path = Path(settings.out) / "cells" / cell.file
            found = read_result(path)
            of = {"include": digests[cell.task], "answered": answered}
            if found is None or any(found.get(name) != value for name, value in of.items()):
                again = "" if found is None else " again, because code or settings have changed"
                logger.info("%s: %s, %s tokens%s", cell.task, cell.method, cell.budget, again)
                found = run_cell(settings, cell) | of
                _write(path, found)
            yield found
            bar.update()


def _own_task(include: str | None, task: str) -> str | None:
    """Return the digest of the folder `include` if it defines a task, else None."""
    if include is None:
        return None
    defines = re.compile(rf"^task:\s*['\"]?{re.escape(task)}['\"]?\s*$", re.MULTILINE)
    texts = (path.read_text() for path in Path(include).rglob("*.yaml"))
    return folder_digest(include) if any(map(defines.search, texts)) else None


def _latency(
    settings: PublicSettings, known: dict[str, Any], around: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure prefill at batch 1 for all budgets, or return the reason why that failed.

    An earlier measurement with the same settings and code on such a machine is used again; `around`
    is the present one, from `environment`.
    """
    path = Path(settings.out) / LATENCY_FILE
    machine = {name: around.get(name) for name in ("processor", "threads", "gpu", "torch")}
    asked = {"budgets": settings.budgets, "device": settings.device, "identity": known}
    asked |= {"machine": machine, "code": code_version()}
    if path.exists() and (before := json.loads(path.read_text())).get("asked") == asked:
        return dict(before)
    try:
        measured = bench_prefill(
            settings.model, settings.selector, settings.budgets, [1], device=settings.device
        )
    except ConfigError as error:
        return {"missing": str(error)}
    measured = {**measured, "asked": asked}
    _write(path, measured)
    return measured


def bench_public(settings: PublicSettings) -> dict[str, Any]:
    """Run the missing cells, then write `report.json` and `report.md`.

    Raises:
        ConfigError: settings do not fit, or lmms-eval is missing or failed.
    """
    out = Path(settings.out)
    known = identity(settings)
    task_runs(settings)
    answered = answering(settings)
    _claim(out, known)
    around = environment()
    record = PublicRecord(settings, {**known, "answered": answered}, around)
    with record.ended_truthfully():
        results = list(finished_cells(settings, answered))
        latency = (
            _latency(settings, known, around) if settings.latency else {"missing": "not asked for"}
        )
        more = {"identity": known, "environment": around, "settings": asdict(settings)}
        report = build_public_report(settings.model, results, latency, more)
        write_text(out / "report.md", public_markdown(report))
        _write(out / "report.json", report)
        record.log(report)
    return report
