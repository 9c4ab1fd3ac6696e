"""How sure a mean over training seeds is, given few seeds and a finite test set.

Two things vary: the selector, from seed to seed, and the test images. Every seed is evaluated on
the same images. With S seeds of sample deviation s, and bootstrap draws over images of the mean
over the seeds, the half-widths

    seeds   t(S - 1) s / sqrt(S)             Student's quantile, since S is small
    images  distance of the 2.5 and 97.5 % quantiles of the draws from the mean

are added in quadrature. s itself is measured on finite images, so the sum is a little wide rather
than narrow. Differences between two variants are taken seed by seed and image by image first
(paired by seed), which removes what both share. With one seed only the images are covered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoselect.evaluation.scores.intervals import interval

# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom; later ones are narrower.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Measured:
    """A number of one training seed.

    Attributes:
        value: on all test images.
        draws: the same on bootstrap resamples of the images, [draws].
    """

    value: float
    draws: np.ndarray

    def __sub__(self, other: "Measured") -> "Measured":
        """The difference, resample by resample."""
        return Measured(self.value - other.value, self.draws - other.draws)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the seeds.
        low: of the 95 % interval.
        high: of the 95 % interval.
        seeds: the value of each seed.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    @property
    def covers(self) -> str:
        """What the interval speaks about."""
        return "seeds and images" if len(self.seeds) > 1 else "images only"

    def as_json(self) -> dict[str, object]:
        """Plain values; fractions."""
        return {
            "mean": self.mean,
            "ci95": [self.low, self.high],
            "covers": self.covers,
            "seeds": list(self.seeds),
        }


def estimate(seeds: Sequence[Measured]) -> Estimate:
    """Mean over the seeds with its 95 % interval over seeds and images.

    Args:
        seeds: one entry per training seed, drawn on the same resamples of images.
    """
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
