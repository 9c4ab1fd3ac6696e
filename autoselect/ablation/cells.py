"""Run one cell of an ablation: train a variant with one seed, evaluate it and measure its leak.

    OUT/cells/VARIANT/seed-S/
      train/     run folder: configuration, checkpoints, selector
      eval/      output of `autoselect eval`: report and predictions of the selector
      leak/      output of `autoselect analyse leak`, if the cell trained its selector
      log.txt    output of the programs, if several cells ran at the same time
      cell.json  settings, selector's digest and outcome; written last: it marks a finished cell

Every step is a program that resumes after it was killed. A step is skipped if its result exists and
is of the present selector.
The baselines do not depend on the variant and are evaluated once, in `OUT/baselines`. The tables
need nothing but the `cell.json` files: everything else may be removed, and an ablation can be
continued from a copy of those files.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoselect.ablation.outcome import evaluated, outcome_of, same_subject, subject_of
from autoselect.ablation.variants import (
    AblationPlan,
    Variant,
    changed_settings,
)
from autoselect.config import ConfigError
from autoselect.config.programs import call, checkout, eval_command, train_command
from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.answers.answering import BLIND, FULL
from autoselect.evaluation.earlier import remove_earlier
from autoselect.evaluation.settings import EvalSettings
from autoselect.files.atomic import write_text
from autoselect.pruning.folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    choice_digest,
    missing_of_training,
)
from autoselect.reference.resources import REFERENCE_ANSWER_TOKENS

AGAIN = "`autoselect ablate` again"
BEGUN, LOG = "begun.json", "log.txt"
COLUMNS = (SELECTOR, FULL, BLIND)
CHOICE = "selector"
"""Key of a record: `choice_digest` of the selector that was evaluated."""


@dataclass(frozen=True)
class Cell:
    """One variant trained with one seed, and its folder."""

    variant: Variant
    seed: int
    folder: Path

    @classmethod
    def of(cls, out: Path, variant: Variant, seed: int) -> "Cell":
        return cls(variant, seed, out / "cells" / variant.name / f"seed-{seed}")

    @property
    def note(self) -> Path:
        return self.folder / "cell.json"

    @property
    def is_finished(self) -> bool:
        return self.note.is_file()

    def read(self) -> dict[str, Any]:
        """Return the variant, seed, settings and `outcome` of a finished cell."""
        return json.loads(self.note.read_text())


def run_cell(
    plan: AblationPlan, out: Path, variant: Variant, seed: int, log: Path | None = None
) -> Cell:
    """Run the missing steps of a cell and return it; program output goes to `log`, or is printed.

    Raises:
        ConfigError: a step failed, or the folder holds a cell trained with other settings.
    """
    cell = Cell.of(out, variant, seed)
    trained_as = Cell.of(out, plan.variant(variant.trained_as or variant.name), seed)
    train = trained_as.folder / "train"
    note: dict[str, Any] = {
        "variant": variant.name,
        "seed": seed,
        "train": str(train.relative_to(out)),
        "training": plan.training(trained_as.variant, seed),
        "evaluation": evaluation_of(plan, variant, "none"),
        "leak": _leak_of(plan),
    }
    for one in (cell, trained_as):
        check_training(one, note["training"])
    selector = train / "selector"
    trained = not missing_of_training(selector, note["training"]["tune_images"])
    if cell.is_finished and _says(cell.read(), note):
        if not _is_here(selector) or (trained and _is_of(cell.note, selector)):
            return cell
    cell.folder.mkdir(parents=True, exist_ok=True)
    _write(cell.folder / BEGUN, note)
    if not trained:
        _train(plan, trained_as, note["training"], log)
    subject = {CHOICE: choice_digest(selector)}
    evaluate(plan, cell.folder / "eval", selector, variant, "none", subject, log)
    # The leak is that of the scores alone, so cells that share them share it.
    measure_leak(plan, train, trained_as.folder / "leak", subject, log)
    _write(cell.note, {**note, **subject, "outcome": outcome_of(cell.folder, train, COLUMNS)})
    return cell


def _is_here(selector: Path) -> bool:
    """Return True if a selector has its files; next to a copied `cell.json` there are none."""
    return all((selector / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE))


def _is_of(record: Path, selector: Path) -> bool:
    """Return True if a record is of the present selector.

    One of an earlier version names no digest, and is if it is not older than the selector.
    """
    known = json.loads(record.read_text()).get(CHOICE)
    if known is None:
        return record.stat().st_mtime >= (selector / CONFIG_FILE).stat().st_mtime
    return bool(known == choice_digest(selector))


def _train(plan: AblationPlan, cell: Cell, training: Mapping[str, Any], log: Path | None) -> None:
    """Train the selector of a cell, or resume, and tune it if its settings ask for that.

    Raises:
        ConfigError: the program failed, or it ended without what its settings ask for.
    """
    if not (cell.folder / BEGUN).is_file():
        _write(cell.folder / BEGUN, {"training": training})
    train = cell.folder / "train"
    call(_training(plan, cell.variant, cell.seed, train), AGAIN, log=log)
    if why := missing_of_training(train / "selector", training["tune_images"]):
        raise ConfigError(f"{cell.folder} is not trained as its settings ask: {why}")


def _says(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Return True if a finished cell has the wanted settings; absent ones had their default."""
    others = {key for key in wanted if key != "training"}
    same = all(found.get(key) == wanted[key] for key in others)
    return same and not changed_settings(found["training"], wanted["training"])


def evaluate_baselines(plan: AblationPlan, out: Path, beside: Cell) -> None:
    """Evaluate the baselines into `OUT/baselines`, unless results for the same model exist.

    The selector of the finished cell `beside` is used, because an evaluation needs one.
    """
    folder = out / "baselines"
    plain = Variant(name="baselines", asks="What do the baselines keep?")
    note: dict[str, Any] = {"evaluation": evaluation_of(plan, plain, plan.baselines)}
    cell, file = beside.read(), folder / "cell.json"
    subject = subject_of(cell["outcome"])
    if file.is_file():
        found = json.loads(file.read_text())
        alike = same_subject(subject_of(found["outcome"]), subject)
        if found["evaluation"] == note["evaluation"] and alike:
            return
    selector = out / cell["train"] / "selector"
    evaluate(plan, folder, selector, plain, plan.baselines, subject)
    _write(file, {**note, "outcome": evaluated(folder)})


def evaluate(
    plan: AblationPlan,
    out: Path,
    selector: Path,
    variant: Variant,
    methods: str,
    subject: Mapping[str, str],
    log: Path | None = None,
) -> None:
    """Evaluate a selector and `methods` into `out`, unless the same evaluation exists there.

    `subject` holds the digests of what is evaluated: the selector, or `subject_of` for baselines.
    """
    settings = evaluation_settings(plan, out, selector, variant, methods)
    identity = evaluation_of(plan, variant, methods) | dict(subject)
    report = out / "report.json"
    _once(eval_command(settings), report, EvalSettings(**settings), identity, log)


def evaluation_settings(
    plan: AblationPlan, out: Path, selector: Path, variant: Variant, methods: str
) -> dict[str, Any]:
    """Return the fields of `EvalSettings` that an evaluation of a cell sets."""
    return {
        "model": plan.model,
        "selector": selector,
        "shards": plan.test_shards,
        "budgets": plan.budgets,
        "methods": methods,
        "max_images": plan.images,
        "max_new_tokens": plan.max_new_tokens,
        "rows_per_batch": plan.rows_per_batch,
        "latency_repeats": 1,  # an ablation has no table of latencies
        "out": out,
        "tracking": False,
        **variant.eval,
    }


def _once(
    command: list[str], report: Path, settings: Any, identity: Mapping[str, Any], log: Path | None
) -> None:
    """Run a program that writes a report, unless it already did so with the same settings.

    Args:
        command: the program.
        report: the file that it writes.
        settings: what the report names as its settings.
        identity: what determines the result; kept beside the report.
        log: that of `run_cell`.
    """
    note = report.with_name("measured.json")
    if note.is_file() and json.loads(note.read_text()) == identity:
        return
    note.unlink(missing_ok=True)
    remove_earlier(report, settings)
    call(command, AGAIN, log=log)
    _write(note, identity)


def evaluation_of(plan: AblationPlan, variant: Variant, methods: str) -> dict[str, Any]:
    """Return the settings that determine the evaluation of a cell, the selector excepted."""
    return {
        "model": plan.model,
        "shards": plan.test_shards,
        "images": plan.images,
        "budgets": plan.budgets,
        "methods": methods,
        "settings": _answers(plan) | variant.eval,
    }


def _answers(plan: AblationPlan) -> dict[str, int]:
    """Return the answer length if it is not the default: older notes do not hold the default."""
    longest = plan.max_new_tokens
    return {} if longest == REFERENCE_ANSWER_TOKENS else {"max_new_tokens": longest}


def check_training(cell: Cell, training: Mapping[str, Any]) -> None:
    """Raise ConfigError if a cell was started with other training settings.

    Other evaluation settings are allowed: the evaluation is then repeated.
    """
    known = [note for note in (cell.folder / BEGUN, cell.note) if note.is_file()]
    if not known:
        return
    changed = changed_settings(json.loads(known[0].read_text())["training"], training)
    if changed:
        listed = ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in changed.items())
        raise ConfigError(
            f"{cell.folder} holds a cell trained with other settings ({listed}); choose another "
            "--out, give the settings of the cell, or remove that folder to train it again"
        )


def check_trainings(plan: AblationPlan, out: Path) -> None:
    """Raise ConfigError if any cell under `out` was started with other training settings."""
    for variant, seed in plan.cells():
        trained = plan.variant(variant.trained_as or variant.name)
        check_training(Cell.of(out, variant, seed), plan.training(trained, seed))


def _training(plan: AblationPlan, variant: Variant, seed: int, output: Path) -> list[str]:
    script = checkout() / "autoselect" / "train.py"
    settings = plan.settings(variant, seed)
    return train_command(output, plan.ranks, plan.port, script, plan.deepspeed_file, settings)


def measure_leak(
    plan: AblationPlan,
    train: Path,
    out: Path,
    subject: Mapping[str, str],
    log: Path | None,
) -> None:
    """Measure the leak of a training into `out`, unless the same measure exists there."""
    settings = {
        "model": plan.model,
        "train_run": str(train),
        "selector": str(train / "selector"),
        "shards": plan.test_shards,
        "budgets": str(plan.leak_budget),
        "max_images": min(plan.leak_images, plan.images),
        "max_new_tokens": plan.max_new_tokens,
    }
    command = ["autoselect", "analyse", "leak", "--out", str(out), "--no-tracking"]
    for name, value in settings.items():
        flag = "run" if name == "train_run" else name.replace("_", "-")
        command += [f"--{flag}", str(value)]
    identity = _leak_of(plan) | {"run": str(train)} | dict(subject)
    _once(command, out / "leak.json", settings, identity, log)


def _leak_of(plan: AblationPlan) -> dict[str, int]:
    """Return the settings that determine the leak measure of a cell."""
    images = min(plan.leak_images, plan.images)
    return {"images": images, "budget": plan.leak_budget} | _answers(plan)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value))
