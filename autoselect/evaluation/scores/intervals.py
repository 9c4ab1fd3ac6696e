"""Compute confidence intervals by a paired bootstrap over images.

Images are drawn with replacement, and every method sees the same draws (Efron and Tibshirani 1993).
The difficulty of an image therefore cancels in retentions and in differences between methods.
Samples that show the same image are drawn together, because their scores are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoselect.evaluation.scores.scoring import ScoreTable, known_mean

DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Resampling:
    """Bootstrap draws: how often the image of each sample was drawn, [draws, samples]."""

    weights: np.ndarray

    @classmethod
    def of(cls, images: int, draws: int = DRAWS, seed: int = 0) -> "Resampling":
        """Draw `draws` resamples of `images` images; equal seeds give equal draws."""
        generator = np.random.default_rng(seed)
        uniform = np.full(images, 1 / images)
        return cls(generator.multinomial(images, uniform, size=draws).astype(np.float32))

    @classmethod
    def over(cls, pictures: Sequence[str]) -> "Resampling":
        """Draw resamples of samples by what they show, see `pictures_of`."""
        places = {picture: place for place, picture in enumerate(dict.fromkeys(pictures))}
        drawn = cls.of(len(places))
        if len(places) == len(pictures):
            return drawn
        return cls(drawn.weights.take([places[picture] for picture in pictures], axis=1))

    def task_means(self, table: ScoreTable) -> np.ndarray:
        """Return task scores, [draws, tasks]; NaN if a draw holds no image of a task.

        A task of several parts is the mean of those that the draw holds.
        """
        counts = self.weights @ table.counts.astype(np.float32)
        sums = self.weights @ table.sums.astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            return table.by_task(sums / counts)

    def retention(self, table: ScoreTable, full: ScoreTable) -> np.ndarray:
        """Return retentions, [draws]; NaN if the full model scores 0 in every task."""
        return known_mean(self.task_retentions(table, full))

    def task_retentions(self, table: ScoreTable, full: ScoreTable) -> np.ndarray:
        """Return retentions of tasks, [draws, tasks]; NaN where the full model scores 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = self.task_means(table) / self.task_means(full)
        return np.where(np.isfinite(ratios), ratios, np.nan)


def retention(table: ScoreTable, full: ScoreTable) -> float:
    """Return the mean over tasks of score / full score; NaN if the full model scores 0 in all."""
    ratios = list(task_retentions(table, full).values())
    return float(np.mean(ratios)) if ratios else float("nan")


def task_retentions(table: ScoreTable, full: ScoreTable) -> dict[str, float]:
    """Return score / full score of each task in which the full model scores above 0."""
    whole = full.task_means()
    return {t: score / whole[t] for t, score in table.task_means().items() if whole[t] > 0}


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval that holds the central 95 % of the draws, ignoring NaN."""
    if np.isnan(draws).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
