"""Configuration: frozen dataclasses, their checks, and the one error users see for bad input.

The defaults are the reference run, so that the documented command needs no other flag. Files and
flags that change them are read in `autoselect.config.files`. Batch sizes, precision, ZeRO and
clipping belong to the DeepSpeed JSON alone.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from autoselect.config.errors import require


def _at_least(least: int, name: str, value: int) -> None:
    require(value >= least, f"{name}={value} is below {least}; choose {least} or more")


def _positive(name: str, value: float) -> None:
    rule = f"{name}={value} must be above 0 and finite"
    require(value > 0 and math.isfinite(value), f"{rule}; choose a number such as 0.01")


def _share(name: str, value: float) -> None:
    require(0 <= value <= 1, f"{name}={value} must lie in 0..1; it is a share of the whole")


GateKind = Literal["noise", "zero_fill", "multiplicative", "straight_through", "none"]
GateSite = Literal["after_projector", "before_projector"]


@dataclass(frozen=True)
class ScorerConfig:
    """Size of the Scorer.

    Attributes:
        hidden_size: channels inside the Scorer.
        num_layers: bidirectional transformer blocks.
        num_heads: attention heads; divides `hidden_size`.
    """

    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4

    def __post_init__(self) -> None:
        _at_least(1, "scorer.hidden_size", self.hidden_size)
        _at_least(0, "scorer.num_layers", self.num_layers)
        _at_least(1, "scorer.num_heads", self.num_heads)
        require(
            self.hidden_size % self.num_heads == 0,
            f"scorer.hidden_size={self.hidden_size} is not divisible by "
            f"scorer.num_heads={self.num_heads}; choose a multiple",
        )


@dataclass(frozen=True)
class DenoiserConfig:
    """Size of the Denoiser.

    Attributes:
        num_layers: blocks of diagonal attention and MLP; 0 trains without a Denoiser.
        hidden_size: channels of each block's two bottlenecks (values and MLP).
        told_gate: each token's gate is an input, so that the Denoiser knows how noisy it is; needs
            at least one block.
    """

    num_layers: int = 2
    hidden_size: int = 256
    told_gate: bool = False

    def __post_init__(self) -> None:
        _at_least(0, "denoiser.num_layers", self.num_layers)
        _at_least(1, "denoiser.hidden_size", self.hidden_size)
        require(
            self.num_layers >= 1 or not self.told_gate,
            "denoiser.told_gate=true needs a Denoiser, but denoiser.num_layers=0; "
            "choose denoiser.num_layers of 1 or more, or denoiser.told_gate=false",
        )


@dataclass(frozen=True)
class GateConfig:
    """Soft top-K and the noise gate.

    Attributes:
        token_budget: K, tokens kept per image; also the upper end when a range is drawn.
        min_token_budget: lower end of the range from which K is drawn per step; None fixes K.
        temperature_start: of the sigmoid, in standardised scores.
        temperature_end: reached after `anneal_fraction` of the steps, geometrically.
        anneal_fraction: of all steps.
        standardise: scores have mean 0 and variance 1 per image before soft top-K.
        noise: `covariance` matches the tokens' covariance, `channel` each channel's variance.
        noise_rank: rank of the covariance factor.
        calibration_images: images whose tokens give mean, deviation and factor.
        soft_removal: also add each gate's logarithm to the attention logits of its token, so that
            a closed gate is removed as at inference; not in the paper.
        kind: `noise` is the paper's; the others stand in `autoselect/method/gating.py`.
        site: which tokens are gated and repaired: those that the language model sees, or what its
            projector makes them of. Scores come from the former at both sites.
    """

    token_budget: int = 16
    min_token_budget: int | None = 6
    temperature_start: float = 0.5
    temperature_end: float = 0.02
    anneal_fraction: float = 0.4
    standardise: bool = True
    noise: Literal["covariance", "channel"] = "covariance"
    noise_rank: int = 64
    calibration_images: int = 256
    soft_removal: bool = False
    kind: GateKind = "noise"
    site: GateSite = "after_projector"

    def __post_init__(self) -> None:
        _at_least(1, "gate.token_budget", self.token_budget)
        low = self.min_token_budget
        require(
            low is None or 1 <= low <= self.token_budget,
            f"gate.min_token_budget={low} must lie in 1..gate.token_budget={self.token_budget}; "
            "choose a number in between, or null to fix the budget",
        )
        _positive("gate.temperature_start", self.temperature_start)
        _positive("gate.temperature_end", self.temperature_end)
        require(
            self.temperature_end <= self.temperature_start,
            f"gate.temperature_end={self.temperature_end} must not exceed "
            f"gate.temperature_start={self.temperature_start}; lower it, or raise the other",
        )
        _share("gate.anneal_fraction", self.anneal_fraction)
        require(
            1 <= self.noise_rank <= 64,
            f"gate.noise_rank={self.noise_rank} must lie in 1..64; choose a rank in between",
        )
        _at_least(2, "gate.calibration_images", self.calibration_images)
        require(
            self.kind != "none" or self.soft_removal,
            "gate.kind=none lets every token pass, so the budget would mean nothing; "
            "set gate.soft_removal=true or choose another gate.kind",
        )


@dataclass(frozen=True)
class DataConfig:
    """What is read.

    Attributes:
        train_shards: glob of WebDataset shards; `reference` renders its own on first use.
        rounds: `independent` questions on one image, or one `conversation`.
        max_text_tokens: longest row, image placeholders included.
        workers: decoding worker processes per rank; 0 decodes in the training process.
        quarantine_budget: largest tolerated share of unusable samples; the run ends above it.
    """

    train_shards: str = "reference"
    rounds: Literal["independent", "conversation"] = "independent"
    max_text_tokens: int = 2048
    workers: int = 0
    quarantine_budget: float = 0.001

    def __post_init__(self) -> None:
        _at_least(1, "data.max_text_tokens", self.max_text_tokens)
        _at_least(0, "data.workers", self.workers)
        _share("data.quarantine_budget", self.quarantine_budget)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to a floor.

    Attributes:
        learning_rate: peak.
        weight_decay: of matrices.
        warmup_fraction: of all steps.
        floor_fraction: final learning rate over the peak.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.05
    floor_fraction: float = 0.3

    def __post_init__(self) -> None:
        _positive("optimizer.learning_rate", self.learning_rate)
        require(
            self.weight_decay >= 0 and math.isfinite(self.weight_decay),
            f"optimizer.weight_decay={self.weight_decay} must be 0 or more and finite; "
            "choose 0 for none",
        )
        require(
            0 <= self.warmup_fraction < 1,
            f"optimizer.warmup_fraction={self.warmup_fraction} must lie in 0..1, below 1; "
            "choose 0 for no warm-up",
        )
        _share("optimizer.floor_fraction", self.floor_fraction)


@dataclass(frozen=True)
class TrainConfig:
    """One training run; the defaults are the reference run.

    Attributes:
        model: folder or hub name of the frozen VLM; `reference` is the one that ships here.
        output: run folder: resolved configuration, checkpoints, exported selector.
        steps: optimiser updates.
        seed: of weights, data order and noise.
        save_every: updates between checkpoints.
        keep_checkpoints: how many stay.
        log_every: updates between logged metrics.
        max_skipped_steps: consecutive steps with a non-finite loss or gradient before the run ends.
        activation_checkpointing: recompute the frozen language model in the backward pass, layer by
            layer.
        experiment: MLflow experiment.
        tracking: log to MLflow.
        dtype: of the frozen VLM; `auto` is bfloat16 on accelerators and float32 on CPUs.
    """

    model: str = "reference"
    output: str = "runs/reference/train"
    steps: int = 240
    seed: int = 0
    save_every: int = 100
    keep_checkpoints: int = 2
    log_every: int = 10
    max_skipped_steps: int = 20
    activation_checkpointing: bool = False
    experiment: str = "autoselect"
    tracking: bool = True
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "keep_checkpoints", "log_every", "max_skipped_steps"):
            _at_least(1, name, getattr(self, name))
        require(
            0 <= self.seed < 2**63, f"seed={self.seed} must lie in 0..2^63-1; choose another number"
        )
