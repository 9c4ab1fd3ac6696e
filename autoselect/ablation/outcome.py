"""Outcome of a finished cell: scores, leak measure, polarisation and final loss.

Outcomes are small enough to be committed. All tables of an ablation are made from them alone, so
they can be collected without checkpoints and images, and a later sweep can continue from them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoselect.evaluation.answers.predictions import StoredScores, read_scores
from autoselect.evaluation.earlier import SETTINGS
from autoselect.evaluation.scores.scoring import ScoreTable
from autoselect.files.digest import same_weights
from autoselect.tracking.history import metric_history

LOSS, LAST_STEPS = "train/loss", 0.1
HEAD = ("model", "num_tokens", "questions", "environment", "digests")
"""What an outcome keeps of a report."""


def outcome_of(folder: Path, train: Path, methods: Sequence[str]) -> dict[str, Any]:
    """Return the outcome of a cell as JSON values, with the scores of `methods`."""
    training = _json(train / "selector" / "config.json")["training"]
    leak = _json(train.parent / "leak" / "leak.json")
    return {
        **evaluated(folder / "eval", methods),
        "leak": {key: value for key, value in leak.items() if key != SETTINGS},
        "polarisation": training.get("polarisation"),
        "final_loss": _final_loss(training.get("tracking_run_id")),
        "model_digest": training.get("model_digest"),
        "training_data": training.get("data_digest"),
    }


def evaluated(folder: Path, methods: Sequence[str] | None = None) -> dict[str, Any]:
    """Return scores (of `methods`, or of all) and the head of a report, as JSON values."""
    scores = read_scores(folder / "predictions.jsonl", methods)
    report = _json(folder / "report.json")
    some = next(iter(scores.tables.values()))
    return {
        "report": {key: report[key] for key in HEAD if key in report},
        "scores": {
            "keys": list(scores.keys),
            **_repeated(scores.pictures),
            "tasks": list(some.parts),
            "counts": _numbers(some.counts),
            "sums": {f"{m}@{b}": _numbers(t.sums) for (m, b), t in scores.tables.items()},
        },
    }


def subject_of(outcome: dict[str, Any]) -> dict[str, str]:
    """Return the digests of model weights and data; only outcomes with equal ones compare.

    The digest of the weights comes from the training, because older reports identified a model by
    all of its files.
    """
    digests = outcome["report"]["digests"]
    return {"model": outcome.get("model_digest") or digests["model"], "data": digests["data"]}


def same_subject(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return True if two values of `subject_of` name the same weights and the same data."""
    return one["data"] == other["data"] and same_weights(one["model"], other["model"])


def _repeated(pictures: Sequence[str]) -> dict[str, list[int]]:
    """Return for each sample the number of the picture that it shows, if some show the same."""
    numbers = {picture: number for number, picture in enumerate(dict.fromkeys(pictures))}
    if len(numbers) == len(pictures):
        return {}
    return {"pictures": [numbers[picture] for picture in pictures]}


def stored_scores(outcome: dict[str, Any]) -> StoredScores:
    kept = outcome["scores"]
    pictures = tuple(map(str, kept.get("pictures", range(len(kept["keys"])))))
    tasks, counts = tuple(kept["tasks"]), np.array(kept["counts"], dtype=float)
    tables = {}
    for column, sums in kept["sums"].items():
        method, _, budget = column.rpartition("@")
        tables[method, int(budget)] = ScoreTable(tasks, np.array(sums, dtype=float), counts)
    return StoredScores(tuple(kept["keys"]), pictures, tables)


def _numbers(values: np.ndarray) -> list[list[float]]:
    """Convert an array to nested lists, with whole numbers as int to keep the JSON short."""
    return [[int(x) if x == int(x) else float(x) for x in row] for row in values]


def _final_loss(run_id: str | None) -> float | None:
    """Return the mean loss over the last tenth of the logged training steps."""
    course = metric_history(run_id, LOSS) if run_id else []
    last = [value for _, value in course[-max(1, round(LAST_STEPS * len(course))) :]]
    return float(np.mean(last)) if last else None


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
