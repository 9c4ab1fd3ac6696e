"""Settings of the gate: budget, temperature, noise, what is gated and how."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autoselect.config.bounds import at_least, share, temperature
from autoselect.config.errors import require
from autoselect.config.setting import setting

GateKind = Literal["noise", "zero_fill", "multiplicative", "straight_through", "gumbel", "none"]
GateSite = Literal["after_projector", "before_projector", "before_encoder"]
Noise = Literal["covariance", "channel", "isotropic"]
NOISY: tuple[GateKind, ...] = ("noise", "straight_through", "gumbel")
"""Kinds that fill closed tokens with noise."""


@dataclass(frozen=True)
class GateConfig:
    token_budget: int = setting(
        16, "tokens kept per image, K; the upper end of the range if K is drawn for each step"
    )
    min_token_budget: float | None = setting(
        0.375,
        "lower end of the range from which K is drawn for each step: from 1 on a number of tokens, "
        "below 1 a share of token_budget; null fixes K",
    )
    temperature_start: float = setting(
        0.5, "temperature of soft top-K at the first step, in units of standardised scores"
    )
    temperature_end: float = setting(0.02, "temperature reached after anneal_fraction of the steps")
    temperature_decay: Literal["geometric", "cosine"] = setting(
        "geometric", "how the temperature falls: by equal factors, or along half a cosine"
    )
    anneal_fraction: float = setting(
        0.4, "share of all steps over which the temperature falls, 0..1"
    )
    standardise: bool = setting(
        True, "scale scores to mean 0 and variance 1 per image before soft top-K"
    )
    noise: Noise = setting(
        "covariance",
        "what the noise shares with the visual tokens: their covariance, the variance of each "
        "channel, or (isotropic) one variance, with tokens normalised to it before the gate",
    )
    noise_rank: int = setting(64, "rank of the covariance factor, 1..64")
    calibration_images: int = setting(
        256, "images whose tokens give mean, deviation and covariance factor of the noise"
    )
    soft_removal: bool = setting(
        False,
        "also add the logarithm of each gate to the attention logits of its token, so that a "
        "closed gate removes the token as inference does; not in the paper",
    )
    coverage: float = setting(
        0.0,
        "lower the score of each token by this much times its likeness (cosine) to tokens that go "
        "before it, in units of standardised scores, 0 or more; not in the paper",
    )
    kind: GateKind = setting(
        "noise",
        "formula of the gate, see autoselect/method/gating.py; noise has the paper's form",
    )
    site: GateSite = setting(
        "after_projector",
        "which tokens are scored and gated: what the projector returns, what it takes, or the "
        "patch embeddings before the vision encoder",
    )

    def __post_init__(self) -> None:
        at_least(1, "gate.token_budget", self.token_budget)
        low = self.min_token_budget
        require(
            low is None or 0 < low < 1 or (low % 1 == 0 and 1 <= low <= self.token_budget),
            f"gate.min_token_budget={low} must be a share above 0 and below 1, or a whole number "
            f"in 1..gate.token_budget={self.token_budget}; choose one, or null to fix the budget",
        )
        temperature("gate.temperature_start", self.temperature_start)
        temperature("gate.temperature_end", self.temperature_end)
        require(
            self.temperature_end <= self.temperature_start,
            f"gate.temperature_end={self.temperature_end} must not exceed "
            f"gate.temperature_start={self.temperature_start}; lower it, or raise the other",
        )
        share("gate.anneal_fraction", self.anneal_fraction)
        require(
            1 <= self.noise_rank <= 64,
            f"gate.noise_rank={self.noise_rank} must lie in 1..64; choose a rank in between",
        )
        at_least(2, "gate.calibration_images", self.calibration_images)
        require(
            self.coverage >= 0 and math.isfinite(self.coverage),
            f"gate.coverage={self.coverage} must be 0 or more and finite; choose 0 for none",
        )
        require(
            self.noise != "isotropic" or self.kind in NOISY,
            f"gate.noise=isotropic normalises tokens for a gate that adds noise, and "
            f"gate.kind={self.kind} adds none; set gate.kind=noise, or leave gate.noise out",
        )
        require(
            self.kind != "none" or self.soft_removal,
            "gate.kind=none lets every token pass, so the budget would mean nothing; "
            "set gate.soft_removal=true or choose another gate.kind",
        )

    @property
    def fills(self) -> bool:
        """Return True if closed tokens stay in training as noise, which inference removes."""
        return self.kind in NOISY and not self.soft_removal

    @property
    def lowest_budget(self) -> int | None:
        """Return the smallest K that is drawn, in tokens; None if K is fixed."""
        return in_tokens(self.min_token_budget, self.token_budget)


def in_tokens(low: float | None, budget: int) -> int | None:
    """Return the smallest K that `gate.min_token_budget` means at a token budget."""
    if low is None:
        return None
    return int(low) if low >= 1 else max(1, round(low * budget))


def with_lowest_budget(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings that name the smallest K in tokens, so that equal ones compare equal.

    A checkpoint, a cell or a tracked run of an earlier version names no share.
    """
    low, budget = "gate.min_token_budget", "gate.token_budget"
    known = {low: in_tokens(flat[low], flat[budget])} if low in flat and budget in flat else {}
    return {**flat, **known}
