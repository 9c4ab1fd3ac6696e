"""Statistics of the visual tokens over the data set, which the noise of the gate shares.

They are calibrated once before training, over the first samples, and stored with the run.
Statistics of the image itself would leak its mean through every gate.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.ops.noise import NoiseStatistics

CALIBRATION_BLOCK = 4096
"""Tokens that are summed at once: with 4,096 channels their float64 copies take 0.3 GB."""


@dataclass(frozen=True)
class TokenStatistics(NoiseStatistics):
    """Mean and covariance of visual tokens, float32, and how many dimensions they fill.

    Attributes:
        participation_ratio: effective dimensions of the tokens, (sum l)^2 / sum l^2 over the
            eigenvalues l of their covariance; 0 for constant tokens.
        normalised: width of the groups of channels over which each token is normalised before the
            gate; 0 if tokens are gated as they are.
    """

    participation_ratio: float = field(kw_only=True)
    normalised: int = field(kw_only=True, default=0)

    def isotropic(self, width: int) -> "TokenStatistics":
        """Return statistics of isotropic noise: one mean and one deviation for `width` channels.

        They are those of all channels of all tokens; deepstack features have numbers of their own.
        """
        mean, square = (v.unflatten(0, (-1, width)) for v in (self.mean, self.second_moment()))
        one = mean.mean(dim=1, keepdim=True)
        std = (square.mean(dim=1, keepdim=True) - one.square()).clamp(min=0).sqrt()
        means, stds = (value.expand_as(mean).flatten() for value in (one, std))
        return TokenStatistics(
            means, stds, participation_ratio=self.participation_ratio, normalised=width
        )

    def second_moment(self) -> Tensor:
        """Return the mean square of each channel, [D]."""
        variance = self.std.square()
        if self.factor is not None:
            variance = variance + self.factor.square().sum(dim=0)
        return variance + self.mean.square()

    def fitted(self, tokens: Tensor) -> Tensor:
        """Return tokens [I, N, D] as the gate mixes them with noise of these statistics.

        With isotropic noise N(0, I) is mixed with tokens that are normalised, each over its own
        channels (arXiv 2605.28051 says "normalised tokens"; how is ours). Both are brought to the
        mean and deviation of the data set, which carries nothing of the image and lets the Denoiser
        begin near the projector's outputs.
        """
        if not self.normalised:
            return tokens
        groups = tokens.float().unflatten(-1, (-1, self.normalised))
        unit = torch.nn.functional.layer_norm(groups, groups.shape[-1:]).flatten(-2)
        return (unit * self.std + self.mean).to(tokens.dtype)

    def to(self, device: torch.device) -> "TokenStatistics":
        """Return the same statistics on another device."""
        factor = None if self.factor is None else self.factor.to(device)
        return replace(self, mean=self.mean.to(device), std=self.std.to(device), factor=factor)

    def tensors(self) -> dict[str, Tensor]:
        """Return named tensors on the CPU, to be stored beside weights."""
        named = {"mean": self.mean, "std": self.std}
        named["participation_ratio"] = torch.tensor(self.participation_ratio)
        if self.normalised:
            named["normalised"] = torch.tensor(self.normalised)
        if self.factor is not None:
            named["factor"] = self.factor
        return {name: value.cpu() for name, value in named.items()}

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> "TokenStatistics":
        """Read what `tensors` returned."""
        ratio = float(named["participation_ratio"])
        return cls(
            named["mean"],
            named["std"],
            named.get("factor"),
            participation_ratio=ratio,
            normalised=int(named.get("normalised", 0)),
        )


def calibrate(
    batches: Iterable[Tensor], rank: int | None, width: int | None = None
) -> TokenStatistics:
    """Measure mean and covariance of tokens in float64, as deviations plus a low-rank factor.

    Args:
        batches: real tokens, each [M, D].
        rank: rows r of the factor; None gives noise per channel, without a factor.
        width: number of leading channels whose covariance is measured; all by default. The others
            (deepstack features) get a mean and a variance per channel.

    Raises:
        ConfigError: there are fewer than two tokens, or a value is not finite.
    """
    count = 0
    sums: list[Tensor] = []
    for part in (part for batch in batches for part in batch.split(CALIBRATION_BLOCK)):
        tokens = part.double()
        own = tokens[:, :width]
        new = [tokens.sum(dim=0), tokens.square().sum(dim=0), own.T @ own]
        sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
        count += len(part)
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
    rounding = len(covariance) * torch.finfo(torch.float64).eps * square[:width].sum()
    total = covariance.trace()  # the sum of its eigenvalues, and below that of their squares
    ratio = float(total**2 / covariance.square().sum()) if total > rounding else 0.0
    if rank is None:
        return TokenStatistics(mean.float(), variance.sqrt().float(), participation_ratio=ratio)
    rank = min(rank, len(covariance))
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    factor = mean.new_zeros(rank, len(mean))
    factor[:, :width] = (vectors[:, -rank:] * eigenvalues[-rank:].clamp(min=0).sqrt()).T
    rest = (variance - factor.square().sum(dim=0)).clamp(min=0)
    std = rest.sqrt().float()
    return TokenStatistics(mean.float(), std, factor.float(), participation_ratio=ratio)
