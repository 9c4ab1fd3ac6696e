"""Confidence intervals of a mean over few training seeds on a finite test set.

Two things vary: the selector, from seed to seed, and the test images. All seeds are evaluated on
the same images. With S seeds of sample deviation s, and bootstrap draws over images of the mean
over the seeds, two half-widths are added in quadrature:

    seeds   t(S - 1) s / sqrt(S)             with Student's quantile, because S is small
    images  distance of the 2.5 and 97.5 % quantiles of the draws from the mean

s is measured on finite images, so the interval is slightly too wide rather than too narrow.
Differences between two variants are paired: they are taken seed by seed and image by image, which
removes what both variants share. With one seed the interval covers only the images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoselect.evaluation.scores.intervals import interval

# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom. Beyond 10 degrees the last one
# is used, which makes the interval slightly too wide.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Measured:
    """A number of one training seed, on all test images and on each bootstrap resample [draws]."""

    value: float
    draws: np.ndarray

    def __sub__(self, other: "Measured") -> "Measured":
        return Measured(self.value - other.value, self.draws - other.draws)


@dataclass(frozen=True)
class Estimate:
    """A mean over training seeds with its 95 % interval, from `low` to `high`.

    `seeds` holds the value of each seed.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def covers(self) -> str:
        return "seeds and images" if len(self.seeds) > 1 else "images only"

    def as_json(self) -> dict[str, object]:
        """Return the estimate as JSON values; NaN, a number that no seed has, as None."""
        return {
            "mean": _known(self.mean),
            "ci95": [_known(self.low), _known(self.high)],
            "covers": self.covers,
            "seeds": [_known(value) for value in self.seeds],
        }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def estimate(seeds: Sequence[Measured]) -> Estimate:
    """Return the mean with its 95 % interval; all seeds share the same resamples of images."""
    values = np.array([seed.value for seed in seeds])
    mean = float(values.mean())
    low, high = interval(np.mean([seed.draws for seed in seeds], axis=0))
    between = 0.0
    if len(seeds) > 1:
        quantile = T_QUANTILES[min(len(seeds) - 1, len(T_QUANTILES)) - 1]
        between = quantile * float(values.std(ddof=1)) / len(seeds) ** 0.5
    below, above = max(0.0, mean - low), max(0.0, high - mean)
    return Estimate(
        mean,
        mean - float(np.hypot(below, between)),
        mean + float(np.hypot(above, between)),
        tuple(values.tolist()),
    )
