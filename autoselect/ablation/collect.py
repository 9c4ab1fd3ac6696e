"""Collect finished cells into one JSON: every variant with its intervals, and the baselines."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoselect.ablation.cells import Cell, check_trainings
from autoselect.ablation.outcome import same_subject, stored_scores, subject_of
from autoselect.ablation.spread import Measured, estimate
from autoselect.ablation.variants import AblationPlan, Variant
from autoselect.config import ConfigError
from autoselect.config.row_names import SELECTOR
from autoselect.evaluation.answers.answering import BLIND, BOUNDS, FULL
from autoselect.evaluation.answers.predictions import StoredScores
from autoselect.evaluation.scores.intervals import Resampling, retention, task_retentions
from autoselect.evaluation.scores.scoring import ScoreTable
from autoselect.files.digest import same_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VariantResults:
    """The finished cells of one variant, and the notes and scores in them, by seed."""

    variant: Variant
    cells: dict[int, Cell]
    notes: dict[int, dict[str, Any]]
    scores: dict[int, StoredScores]


def collect(plan: AblationPlan, out: Path) -> dict[str, Any]:
    """Return the results of all finished cells under `out` as JSON values.

    Raises:
        ConfigError: no cell is finished, one was trained with other settings than the plan's, or
            cells differ in images, budgets or model.
    """
    check_trainings(plan, out)
    rows = [row for variant in plan.variants if (row := _finished(out, variant, plan.seeds)).cells]
    if not rows:
        raise ConfigError(f"{out} holds no finished cell of this ablation; run `autoselect ablate`")
    named = next((row for row in rows if row.variant.name == plan.reference), rows[0])
    first = next(iter(named.scores.values()))
    outcome = next(iter(named.notes.values()))["outcome"]
    _check_alike(rows, first, subject_of(outcome)["data"])
    analysis = _Analysis(plan, first, _baselines(out, outcome))
    evaluated = outcome["report"]
    return {
        "name": plan.name,
        "reference": plan.reference,
        "model": evaluated["model"],
        "num_tokens": evaluated["num_tokens"],
        "images": len(set(first.pictures)),
        "questions": evaluated.get("questions") or int(first.tables[FULL, 0].counts.sum()),
        "budgets": analysis.budgets,
        "families": list(first.tables[FULL, 0].tasks),
        "full": {"mean": analysis.full.mean(), "tasks": analysis.full.task_means()},
        "blind": first.tables[BLIND, 0].mean(),
        "variants": [analysis.row(row, rows) for row in rows],
        "baselines": analysis.baseline_rows(),
        "environments": _environments(rows),
        "digests": subject_of(outcome),
        "missing": _missing(plan, out),
    }


def _missing(plan: AblationPlan, out: Path) -> dict[str, list[int]]:
    """Return the seeds of each variant whose cells are not finished, if any."""
    found: dict[str, list[int]] = {}
    for variant in plan.variants:
        for seed in plan.seeds:
            if not Cell.of(out, variant, seed).is_finished:
                found.setdefault(variant.name, []).append(seed)
    return found


def _environments(rows: Sequence[VariantResults]) -> list[dict[str, Any]]:
    """Return where the cells were evaluated, each once."""
    found: list[dict[str, Any]] = []
    for row in rows:
        for note in row.notes.values():
            own = note["outcome"]["report"]["environment"]
            if own not in found:
                found.append(own)
    return found


def _check_alike(rows: Sequence[VariantResults], first: StoredScores, data: str) -> None:
    budgets = _budgets(first)
    models: dict[str | None, Path] = {}
    trained_on: dict[str, Path] = {}
    for row in rows:
        for seed, scores in row.scores.items():
            folder = row.cells[seed].folder
            if scores.keys != first.keys:
                raise ConfigError(
                    f"{folder} was evaluated on other images than the rest; run `autoselect "
                    "ablate` for all variants with the same --images"
                )
            if subject_of(row.notes[seed]["outcome"])["data"] != data:
                raise ConfigError(
                    f"{folder} was evaluated on other test data of the same keys than the rest; "
                    "remove eval and cell.json of the older cells, and run `autoselect ablate`"
                )
            if _budgets(scores) != budgets:
                raise ConfigError(
                    f"{folder} was evaluated at the budgets {_budgets(scores)}, others at "
                    f"{budgets}; run `autoselect ablate` for all variants with the same budgets"
                )
            digest = row.notes[seed]["outcome"]["model_digest"]
            models.setdefault(next((d for d in models if same_weights(d, digest)), digest), folder)
            if shards := row.notes[seed]["outcome"].get("training_data"):  # new since some notes
                trained_on.setdefault(shards, folder)
    for found, what in ((models, "weights of the model"), (trained_on, "training data")):
        if len(found) > 1:
            raise ConfigError(
                f"{' and '.join(map(str, found.values()))} were trained on different {what}; "
                "remove the older cells, or choose another --out"
            )


def _finished(out: Path, variant: Variant, seeds: Sequence[int]) -> VariantResults:
    cells = {seed: Cell.of(out, variant, seed) for seed in seeds}
    cells = {seed: cell for seed, cell in cells.items() if cell.is_finished}
    notes = {seed: cell.read() for seed, cell in cells.items()}
    scores = {seed: stored_scores(note["outcome"]) for seed, note in notes.items()}
    return VariantResults(variant, cells, notes, scores)


def _budgets(scores: StoredScores) -> list[int]:
    return sorted({budget for method, budget in scores.tables if method == SELECTOR})


def _baselines(out: Path, beside: dict[str, Any]) -> StoredScores | None:
    """Return the baselines' scores, if they belong to the model and images of an outcome."""
    path = out / "baselines" / "cell.json"
    if not path.is_file():
        return None
    outcome = json.loads(path.read_text())["outcome"]
    alike = same_subject(subject_of(outcome), subject_of(beside))
    if not alike or outcome["scores"]["keys"] != beside["scores"]["keys"]:
        logger.warning("the baselines belong to another model or other images and are left out")
        return None
    return stored_scores(outcome)


@dataclass(frozen=True)
class Baseline:
    """Retention of a baseline at one budget: over all task families, and per family."""

    retention: Measured
    families: dict[str, float]


class _Analysis:
    """Compute the numbers of all variants on the same bootstrap resamples of the same images.

    Retention is relative to the full model of the same evaluation, because a variant may change
    how questions are answered.
    """

    def __init__(
        self, plan: AblationPlan, first: StoredScores, baselines: StoredScores | None
    ) -> None:
        self.plan = plan
        self.full = first.tables[FULL, 0]
        self.budgets = _budgets(first)
        self.draws = Resampling.over(first.pictures)
        tables = baselines.tables if baselines is not None else {}
        full = tables.get((FULL, 0), self.full)
        self.baselines = {
            place: Baseline(self.retained(table, full), task_retentions(table, full))
            for place, table in tables.items()
            if place[0] not in (SELECTOR, *BOUNDS)
        }
        self._kept: dict[str, dict[int, dict[int, Measured]]] = {}

    def retained(self, table: ScoreTable, full: ScoreTable) -> Measured:
        return Measured(retention(table, full), self.draws.retention(table, full))

    def kept(self, row: VariantResults) -> dict[int, dict[int, Measured]]:
        """Return the retention of a variant's selectors by budget and seed; computed once."""
        if row.variant.name not in self._kept:
            self._kept[row.variant.name] = {
                budget: {
                    seed: self.retained(scores.tables[SELECTOR, budget], scores.tables[FULL, 0])
                    for seed, scores in row.scores.items()
                }
                for budget in self.budgets
            }
        return self._kept[row.variant.name]

    def family(self, scores: StoredScores, budget: int, name: str) -> Measured:
        table, full = scores.tables[SELECTOR, budget], scores.tables[FULL, 0]
        draws = self.draws.task_retentions(table, full)
        place = full.tasks.index(name)
        return Measured(task_retentions(table, full).get(name, float("nan")), draws[:, place])

    def row(self, row: VariantResults, rows: Sequence[VariantResults]) -> dict[str, Any]:
        reference = next((r for r in rows if r.variant.name == self.plan.reference), None)
        outcomes = [note["outcome"] for note in row.notes.values()]
        kept = self.kept(row)
        return {
            "name": row.variant.name,
            "asks": row.variant.asks,
            "train": row.variant.train,
            "eval": row.variant.eval,
            "trained_as": row.variant.trained_as,
            "steps": next(iter(row.notes.values()))["training"]["steps"],
            "seeds": list(row.cells),
            "retention": {str(b): _over(list(kept[b].values())) for b in self.budgets},
            "families": {
                str(b): {
                    name: _over([self.family(s, b, name) for s in row.scores.values()])
                    for name in self.full.tasks
                }
                for b in self.budgets
            },
            "against_reference": self.against(row, reference) if reference else {},
            "against": {
                method: {
                    str(b): _over([own - baseline.retention for own in kept[b].values()])
                    for (other, b), baseline in self.baselines.items()
                    if other == method and b in kept
                }
                for method in dict.fromkeys(place[0] for place in self.baselines)
            },
            "polarisation": _plain([o["polarisation"] for o in outcomes]),
            "final_loss": _plain([o["final_loss"] for o in outcomes]),
            "leak": _leak([o["leak"] for o in outcomes]),
        }

    def against(self, row: VariantResults, reference: VariantResults) -> dict[str, Any]:
        """Return the retention minus that of the reference variant with the same seed."""
        shared = [seed for seed in row.scores if seed in reference.scores]
        if row is reference or not shared:
            return {}
        own, other = self.kept(row), self.kept(reference)
        return {
            str(b): _over([own[b][seed] - other[b][seed] for seed in shared]) for b in self.budgets
        }

    def baseline_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "method": method,
                "budget": budget,
                "retention": _over([baseline.retention]),
                "families": baseline.families,
            }
            for (method, budget), baseline in sorted(self.baselines.items(), key=lambda i: i[0])
        ]


def _over(seeds: Sequence[Measured]) -> dict[str, object]:
    return estimate(seeds).as_json()


def _plain(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Return mean and single values, without an interval; None if a seed lacks the number."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return {"mean": float(np.mean(known)), "seeds": known}


def _leak(leaks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = ("full", "blind", "without_denoiser", "with_denoiser")
    return {
        "budget": leaks[0]["budget"],
        "images": leaks[0]["images"],
        **{key: _plain([leak[key] for leak in leaks]) for key in keys},
        "excess": {
            key: _plain([leak["excess"][key] for leak in leaks]) for key in leaks[0]["excess"]
        },
    }
