"""Statistics of the visual tokens over the data set: what the noise gate puts in a token's place.

Calibrated once before training, over the first samples, and stored with the run. Statistics of the
image itself would leak that image's mean through every gate.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from autoselect.config import ConfigError


@dataclass(frozen=True)
class TokenStatistics:
    """Mean and spread of visual tokens; noise is `std * eps + factor^T eta`.

    Attributes:
        mean: per channel, float32, [D].
        std: per channel, of what the factor leaves over, float32, [D].
        factor: low-rank part of the covariance, float32, [r, D]; None for noise per channel.
        participation_ratio: effective dimensions of the tokens, (sum l)^2 / sum l^2 over the
            eigenvalues l of their covariance.
    """

    mean: Tensor
    std: Tensor
    factor: Tensor | None
    participation_ratio: float

    def to(self, device: torch.device) -> "TokenStatistics":
        """The same statistics on another device."""
        factor = None if self.factor is None else self.factor.to(device)
        return TokenStatistics(
            self.mean.to(device), self.std.to(device), factor, self.participation_ratio
        )

    def tensors(self) -> dict[str, Tensor]:
        """For storage beside weights."""
        named = {"mean": self.mean, "std": self.std}
        named["participation_ratio"] = torch.tensor(self.participation_ratio)
        if self.factor is not None:
            named["factor"] = self.factor
        return {name: value.cpu() for name, value in named.items()}

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> "TokenStatistics":
        """The inverse of `tensors`."""
        ratio = float(named["participation_ratio"])
        return cls(named["mean"], named["std"], named.get("factor"), ratio)


def calibrate(
    batches: Iterable[Tensor], rank: int | None, width: int | None = None
) -> TokenStatistics:
    """Mean and covariance of tokens in float64, as channel deviations plus a low-rank factor.

    Args:
        batches: real tokens, each [M, D].
        rank: rows of the factor; None keeps the full variance in the channels.
        width: channels whose covariance is measured, the first ones; all by default. The others
            (features for later layers) get their mean and their own variance.

    Raises:
        ConfigError: fewer than two tokens, or a value that is not finite.
    """
    count = 0
    sums: list[Tensor] = []
    for batch in batches:
        tokens = batch.double()
        own = tokens[:, :width]
        new = [tokens.sum(dim=0), tokens.square().sum(dim=0), own.T @ own]
        sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
        count += len(tokens)
    if count < 2:
        raise ConfigError(
            "calibration saw fewer than two visual tokens; the first training samples need images"
        )
    mean, square, product = (value / count for value in sums)
    variance = (square - mean.square()).clamp(min=0)
    covariance = product - torch.outer(mean[:width], mean[:width])
    if not bool(torch.isfinite(covariance).all() and torch.isfinite(variance).all()):
        raise ConfigError(
            "calibration met visual tokens that are not finite; check the frozen model's dtype"
        )
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    eigenvalues = eigenvalues.clamp(min=0)
    ratio = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    if rank is None:
        return TokenStatistics(mean.float(), variance.sqrt().float(), None, ratio)
    rank = min(rank, len(covariance))
    factor = mean.new_zeros(rank, len(mean))
    factor[:, :width] = (vectors[:, -rank:] * eigenvalues[-rank:].sqrt()).T
    rest = (variance - factor.square().sum(dim=0)).clamp(min=0)
    return TokenStatistics(mean.float(), rest.sqrt().float(), factor.float(), ratio)
