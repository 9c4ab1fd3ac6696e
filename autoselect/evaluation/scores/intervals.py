"""Paired bootstrap over images: how sure a retention, or a difference of two, is.

Images are drawn with replacement and every column sees the same draw (Efron and Tibshirani 1993),
so that the difficulty of an image cancels in retention and in differences between methods.
"""

from dataclasses import dataclass

import numpy as np

from autoselect.evaluation.scores.scoring import ScoreTable

DRAWS = 2000


@dataclass(frozen=True)
class Resampling:
    """Bootstrap draws: how often each image was drawn, [draws, images]."""

    weights: np.ndarray

    @classmethod
    def of(cls, images: int, draws: int = DRAWS, seed: int = 0) -> "Resampling":
        """`draws` resamples of `images` images, always the same for the same seed."""
        generator = np.random.default_rng(seed)
        uniform = np.full(images, 1 / images)
        return cls(generator.multinomial(images, uniform, size=draws).astype(np.float32))

    def task_means(self, table: ScoreTable) -> np.ndarray:
        """Task scores in every draw, [draws, tasks]; nan where a draw lacks a task."""
        counts = self.weights @ table.counts.astype(np.float32)
        sums = self.weights @ table.sums.astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            return table.by_task(sums / counts)

    def retention(self, table: ScoreTable, full: ScoreTable) -> np.ndarray:
        """Retention in every draw, [draws]; nan where the full model scores 0 in every task."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = self.task_means(table) / self.task_means(full)
            known = np.isfinite(ratios)
            return np.where(known, ratios, 0.0).sum(axis=1) / known.sum(axis=1)


def retention(table: ScoreTable, full: ScoreTable) -> float:
    """Mean over the tasks of score / full score; nan where the full model scores 0 in all."""
    ratios = list(task_retentions(table, full).values())
    return float(np.mean(ratios)) if ratios else float("nan")


def task_retentions(table: ScoreTable, full: ScoreTable) -> dict[str, float]:
    """Score / full score of each task where the full model scores above 0."""
    whole = full.task_means()
    return {t: score / whole[t] for t, score in table.task_means().items() if whole[t] > 0}


def interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of the draws (percentile interval); nan when no draw is a number."""
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
