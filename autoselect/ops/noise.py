"""Noise of the gate: what it depends on, what it resembles, and how it is drawn.

The noise of a token is `L eps = std * eps`, or `std * eps + factor^T eta` with covariance, where
eps and eta are standard normals keyed by run seed, step, sample, token and channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import SupportsIndex

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.ops.autocast import without_autocast
from autoselect.ops.checks import (
    check_constant,
    check_float,
    check_shape,
    values_are_checkable,
)
from autoselect.ops.philox import standard_normals

MAX_FACTOR_RANK = 64


@dataclass(frozen=True)
class NoiseKey:
    """What the noise of a batch depends on, besides token and channel.

    Args:
        seed: run seed, non-negative; an integer or an int64 tensor, 0-d.
        step: training step, non-negative; an integer or an int64 tensor, 0-d. Tensors keep a
            compiled or captured graph valid from step to step.
        sample_ids: id of each row's sample in the data set, non-negative, int64, [B].
    """

    seed: int | Tensor
    step: int | Tensor
    sample_ids: Tensor

    def tensors(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return seed, step and sample ids as int64 tensors on the tokens' device.

        Raises:
            ConfigError: a wrong shape, dtype or device, or a negative value (values are looked at
                on a CPU only).
        """
        check_shape("noise_key.sample_ids", self.sample_ids, tokens.shape[:1], tokens.device)
        seed = self._number("seed", self.seed, tokens.device)
        step = self._number("step", self.step, tokens.device)
        for field, value in (("seed", seed), ("step", step), ("sample_ids", self.sample_ids)):
            if value.dtype != torch.int64:
                raise ConfigError(
                    f"noise_key.{field} has dtype {value.dtype}, but must be torch.int64"
                )
            if values_are_checkable(value) and bool((value < 0).any()):
                raise ConfigError(
                    f"noise_key.{field}={value.tolist()} is negative; use numbers from 0 on"
                )
        return seed, step, self.sample_ids

    @staticmethod
    def _number(field: str, value: int | Tensor, device: torch.device) -> Tensor:
        if isinstance(value, Tensor):
            check_shape(f"noise_key.{field}", value, (), device)
            return value
        if not isinstance(value, SupportsIndex) or not 0 <= value < 2**63:
            raise ConfigError(f"noise_key.{field}={value} must be an integer in 0..2^63 - 1")
        return torch.full((), value, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class NoiseStatistics:
    """Mean and covariance of the data set's tokens, which the noise shares.

    The covariance is `diag(std**2)`, plus `factor^T factor` if there is a factor.

    Args:
        mean: mu, mean of each channel, [D].
        std: standard deviation of each channel, [D]; with a factor, of what the factor leaves over.
        factor: low-rank part of the covariance, [r, D], r up to 64.
    """

    mean: Tensor
    std: Tensor
    factor: Tensor | None = None

    def check(self, tokens: Tensor) -> None:
        """Raise ConfigError unless shapes, dtypes and devices fit tokens [B, N, D]."""
        check_float("tokens", tokens, "[batch, tokens, channels]", 3)
        width = tokens.shape[2]
        for field, value in (("mean", self.mean), ("std", self.std)):
            check_float(field, value, "[channels]", 1)
            check_shape(field, value, (width,), tokens.device)
            check_constant(field, value)
        if values_are_checkable(self.std) and bool((~(self.std.detach() >= 0)).any()):
            raise ConfigError("std must be non-negative in every channel; calibrate it again")
        if self.factor is not None:
            check_float("factor", self.factor, "[rank, channels]", 2)
            rank = self.factor.shape[0]
            if not 1 <= rank <= MAX_FACTOR_RANK:
                raise ConfigError(
                    f"factor has rank {rank}, but must have 1..{MAX_FACTOR_RANK} rows; keep the "
                    "leading directions"
                )
            check_shape("factor", self.factor, (rank, width), tokens.device)
            check_constant("factor", self.factor)


def draw(
    tokens: Tensor, statistics: NoiseStatistics, noise_key: NoiseKey, dtype: torch.dtype
) -> Tensor:
    """Return L eps, [B, N, D]; eps takes channels 0..D-1 of the normals, eta D..D+r-1."""
    _, num_tokens, width = tokens.shape
    factor = statistics.factor
    rank = 0 if factor is None else factor.shape[0]
    normals = standard_normals(*noise_key.tensors(tokens), num_tokens, width + rank).to(dtype)
    noise = statistics.std.to(dtype) * normals[..., :width]
    if factor is not None:
        with without_autocast(tokens.device):
            noise = noise + normals[..., width:] @ factor.to(dtype)
    return noise
