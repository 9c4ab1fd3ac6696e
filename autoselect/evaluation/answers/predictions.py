"""Scores from the predictions file of a finished evaluation, without model and images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoselect.evaluation.scores.scoring import (
    AnsweredSample,
    ScoreTable,
    average,
    pictures_of,
    score_answers,
)

MethodBudget = tuple[str, int]
"""A method at a budget; full, blind and another image stand at budget 0."""


@dataclass(frozen=True)
class StoredScores:
    """Scores of an evaluation.

    Attributes:
        keys: keys of the samples, in order.
        pictures: what each of them shows, see `pictures_of`.
        tables: (method, budget) -> scores, averaged over seeds; full and blind at budget 0.
    """

    keys: tuple[str, ...]
    pictures: tuple[str, ...]
    tables: dict[MethodBudget, ScoreTable]


def read_scores(path: Path, columns: Sequence[str] | None = None) -> StoredScores:
    """Score the stored answers of a `predictions.jsonl` again.

    `columns` names the methods to score; all by default.
    """
    samples: list[AnsweredSample] = []
    texts: dict[str, list[list[str]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["round"] == 0:
            digest = row.get("image_digest", "")  # new since some files
            samples.append(AnsweredSample(row["key"], [], [], [], digest))
        samples[-1].questions.append(row["question"])
        samples[-1].answers.append(row["answers"])
        samples[-1].tasks.append(row["task"])
        for column, text in row["predictions"].items():
            if columns is None or method_of(column)[0] in columns:
                rounds = texts.setdefault(column, [])
                if row["round"] == 0:
                    rounds.append([])
                rounds[-1].append(text)
    seeds: dict[MethodBudget, list[ScoreTable]] = {}
    for column, answers in texts.items():
        seeds.setdefault(method_of(column), []).append(score_answers(samples, answers))
    keys = tuple(sample.key for sample in samples)
    tables = {place: average(found) for place, found in seeds.items()}
    return StoredScores(keys, tuple(pictures_of(samples)), tables)


def method_of(column: str) -> MethodBudget:
    """Split a column name: `divprune@16#0` to `("divprune", 16)`."""
    method, _, rest = column.rpartition("@")
    return method, int(rest.split("#")[0])
