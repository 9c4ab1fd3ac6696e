"""Configuration of a training run: frozen dataclasses, their help texts and their checks.

The defaults are the reference run, so that the documented command needs no other flag.
`autoselect.config.files` reads the files and flags that change them. Batch sizes, precision, ZeRO
and clipping belong to the DeepSpeed JSON alone.
"""

import math
from dataclasses import dataclass
from typing import Literal

from autoselect.config.errors import require
from autoselect.config.setting import setting


def _at_least(least: int, name: str, value: int) -> None:
    require(value >= least, f"{name}={value} is below {least}; choose {least} or more")


def _positive(name: str, value: float) -> None:
    rule = f"{name}={value} must be above 0 and finite"
    require(value > 0 and math.isfinite(value), f"{rule}; choose a number such as 0.01")


def _share(name: str, value: float) -> None:
    require(0 <= value <= 1, f"{name}={value} must lie in 0..1; it is a share of the whole")


GateKind = Literal["noise", "zero_fill", "multiplicative", "straight_through", "none"]
GateSite = Literal["after_projector", "before_projector"]
Removal = Literal["none", "per_token", "per_image"]


@dataclass(frozen=True)
class ScorerConfig:
    hidden_size: int = setting(64, "channels inside the Scorer; a multiple of num_heads")
    num_layers: int = setting(2, "bidirectional transformer blocks; 0 for none")
    num_heads: int = setting(4, "attention heads")

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
    num_layers: int = setting(
        2, "blocks of diagonal attention and MLP; 0 trains without a Denoiser"
    )
    hidden_size: int = setting(
        256, "channels of the two bottlenecks of each block (values and MLP)"
    )

    def __post_init__(self) -> None:
        _at_least(0, "denoiser.num_layers", self.num_layers)
        _at_least(1, "denoiser.hidden_size", self.hidden_size)


@dataclass(frozen=True)
class GateConfig:
    token_budget: int = setting(
        16, "tokens kept per image, K; the upper end of the range if K is drawn for each step"
    )
    min_token_budget: int | None = setting(
        6, "lower end of the range from which K is drawn for each step; null fixes K"
    )
    temperature_start: float = setting(
        0.5, "temperature of soft top-K at the first step, in units of standardised scores"
    )
    temperature_end: float = setting(
        0.02, "temperature reached after anneal_fraction of the steps, by geometric decay"
    )
    anneal_fraction: float = setting(
        0.4, "share of all steps over which the temperature falls, 0..1"
    )
    standardise: bool = setting(
        True, "scale scores to mean 0 and variance 1 per image before soft top-K"
    )
    noise: Literal["covariance", "channel"] = setting(
        "covariance",
        "what the noise shares with the visual tokens: their covariance, or the variance of each "
        "channel",
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
    removal: Removal = setting(
        "none",
        "also take tokens out of attention at random, as inference removes them: each with "
        "probability p (1 - gate), or for each image a share of that, from none to all; not in the "
        "paper",
    )
    removal_probability: float = setting(
        1.0, "p of gate.removal, 0..1, reached over the middle of the steps"
    )
    removal_presence: bool = setting(
        False,
        "with gate.removal, pass a gradient to the gates of the tokens that stay, for what their "
        "presence in attention is worth",
    )
    coverage: float = setting(
        0.0,
        "lower the score of each token by this much times its likeness (cosine) to tokens that go "
        "before it, in units of standardised scores, 0 or more; not in the paper",
    )
    kind: GateKind = setting(
        "noise",
        "formula of the gate; noise is the paper's, autoselect/method/gating.py defines the others",
    )
    site: GateSite = setting(
        "after_projector",
        "which tokens are gated and repaired: the input or the output of the projector; scores "
        "come from its output at both sites",
    )

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
        _share("gate.removal_probability", self.removal_probability)
        require(
            self.coverage >= 0 and math.isfinite(self.coverage),
            f"gate.coverage={self.coverage} must be 0 or more and finite; choose 0 for none",
        )
        require(
            self.removal == "none" or not self.soft_removal,
            f"gate.removal={self.removal} and gate.soft_removal=true both change attention; "
            "choose one of them",
        )
        require(
            self.removal != "none" or not self.removal_presence,
            "gate.removal_presence=true needs tokens that are removed; set gate.removal, or leave "
            "it out",
        )
        require(
            self.kind != "none" or self.soft_removal,
            "gate.kind=none lets every token pass, so the budget would mean nothing; "
            "set gate.soft_removal=true or choose another gate.kind",
        )


@dataclass(frozen=True)
class DataConfig:
    train_shards: str = setting(
        "reference", "glob of WebDataset shards; reference renders its own at the first start"
    )
    rounds: Literal["independent", "conversation"] = setting(
        "independent",
        "train on the questions about an image as independent rows, or as one conversation",
    )
    max_text_tokens: int = setting(
        2048,
        "longest row in tokens, image placeholders included; rounds that do not fit are left out",
    )
    workers: int = setting(
        0, "decoding worker processes per rank; 0 decodes in the training process"
    )
    quarantine_budget: float = setting(
        0.001, "largest tolerated share of unusable samples; the run ends above it"
    )

    def __post_init__(self) -> None:
        _at_least(1, "data.max_text_tokens", self.max_text_tokens)
        _at_least(0, "data.workers", self.workers)
        _share("data.quarantine_budget", self.quarantine_budget)


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = setting(2e-3, "peak learning rate")
    weight_decay: float = setting(0.01, "weight decay of matrices; other parameters have none")
    warmup_fraction: float = setting(
        0.05, "share of all steps over which the learning rate rises linearly, below 1"
    )
    floor_fraction: float = setting(0.3, "final learning rate as a share of the peak, 0..1")

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
    """One training run; the defaults are the reference run."""

    model: str = setting(
        "reference", "folder or hub name of the frozen VLM; reference is the one that ships here"
    )
    output: str = setting(
        "runs/reference/train",
        "run folder, for the resolved configuration, the checkpoints and the exported selector",
    )
    steps: int = setting(240, "optimiser updates")
    seed: int = setting(0, "seed of the initial weights, the data order and the noise")
    save_every: int = setting(100, "updates between two checkpoints")
    keep_checkpoints: int = setting(2, "checkpoints that are kept, the newest ones")
    log_every: int = setting(10, "updates between two logged sets of metrics")
    max_skipped_steps: int = setting(
        20, "updates in a row with a loss or gradient that is not finite, after which the run ends"
    )
    activation_checkpointing: bool = setting(
        False, "recompute each layer of the frozen language model in the backward pass"
    )
    tune_images: int = setting(
        96,
        "images that were not trained on, on which the weight of diversity at each budget is found "
        "when training ends, see `autoselect tune`; 0 leaves the selector at hard top-K",
    )
    tune_budgets: str = setting(
        "3%,6%,11%,22%", "budgets of that search: counts, ratios or percentages, comma-separated"
    )
    experiment: str = setting("autoselect", "MLflow experiment")
    tracking: bool = setting(True, "log to MLflow")
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "dtype of the frozen VLM; auto is bfloat16 on accelerators and float32 on CPUs"
    )
    scorer: ScorerConfig = setting(ScorerConfig(), "size of the Scorer")
    denoiser: DenoiserConfig = setting(DenoiserConfig(), "size of the Denoiser")
    gate: GateConfig = setting(GateConfig(), "soft top-K, and the gate that its output controls")
    data: DataConfig = setting(DataConfig(), "training data and how it is read")
    optimizer: OptimizerConfig = setting(
        OptimizerConfig(), "AdamW with a linear warm-up, then a cosine to a floor"
    )

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "keep_checkpoints", "log_every", "max_skipped_steps"):
            _at_least(1, name, getattr(self, name))
        _at_least(0, "tune_images", self.tune_images)
        require(
            0 <= self.seed < 2**63, f"seed={self.seed} must lie in 0..2^63-1; choose another number"
        )
