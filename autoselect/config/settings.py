"""Configuration of a training run: frozen dataclasses, their help texts and their checks.

The defaults are the reference run, so that the documented command needs no other flag.
`autoselect.config.files` reads the files and flags that change them. Batch sizes, precision, ZeRO
and clipping belong to the DeepSpeed JSON alone.
"""

import math
from dataclasses import dataclass
from typing import Literal

from autoselect.config.bounds import at_least, place, positive, share
from autoselect.config.errors import require
from autoselect.config.gate import GateConfig
from autoselect.config.setting import setting


@dataclass(frozen=True)
class ScorerConfig:
    hidden_size: int = setting(64, "channels inside the Scorer; a multiple of num_heads")
    num_layers: int = setting(2, "bidirectional transformer blocks; 0 for none")
    num_heads: int = setting(4, "attention heads")

    def __post_init__(self) -> None:
        at_least(1, "scorer.hidden_size", self.hidden_size)
        at_least(0, "scorer.num_layers", self.num_layers)
        at_least(1, "scorer.num_heads", self.num_heads)
        require(
            self.hidden_size % self.num_heads == 0,
            f"scorer.hidden_size={self.hidden_size} is not divisible by "
            f"scorer.num_heads={self.num_heads}; choose a multiple",
        )


DenoiserAttention = Literal["diagonal", "global"]


@dataclass(frozen=True)
class DenoiserConfig:
    num_layers: int = setting(2, "blocks of attention and MLP; 0 trains without a Denoiser")
    hidden_size: int = setting(
        256, "channels of the two bottlenecks of each block (values and MLP)"
    )
    attention: DenoiserAttention = setting(
        "diagonal",
        "what a token of the Denoiser attends to: itself (diagonal), as in the paper, or all "
        "tokens (global), which leaks closed tokens and is there to be compared",
    )

    def __post_init__(self) -> None:
        at_least(0, "denoiser.num_layers", self.num_layers)
        at_least(1, "denoiser.hidden_size", self.hidden_size)


@dataclass(frozen=True)
class DataConfig:
    train_shards: str = setting(
        "reference",
        "folder or glob of WebDataset shards; reference renders its own at the first start",
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
    group_by_length: bool = setting(
        False,
        "put samples of similar length into one micro-batch, within each global batch, so that "
        "rows need less padding; the samples of a step stay the same",
    )
    quarantine_budget: float = setting(
        0.001, "largest tolerated share of unusable samples; the run ends above it"
    )

    def __post_init__(self) -> None:
        place("data.train_shards", self.train_shards)
        at_least(1, "data.max_text_tokens", self.max_text_tokens)
        at_least(0, "data.workers", self.workers)
        share("data.quarantine_budget", self.quarantine_budget)


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = setting(2e-3, "peak learning rate")
    weight_decay: float = setting(0.01, "weight decay of matrices; other parameters have none")
    warmup_fraction: float = setting(
        0.05, "share of all steps over which the learning rate rises linearly, below 1"
    )
    floor_fraction: float = setting(0.3, "final learning rate as a share of the peak, 0..1")

    def __post_init__(self) -> None:
        positive("optimizer.learning_rate", self.learning_rate)
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
        share("optimizer.floor_fraction", self.floor_fraction)


@dataclass(frozen=True)
class ValidationConfig:
    every: int = setting(
        0,
        "updates between two measurements of the loss on held-out rows; 0 for none",
    )
    patience: int = setting(
        0,
        "measurements without a lower loss after which training ends, with the selector of the "
        "lowest one; 0 never ends early and exports the last one",
    )
    shards: str = setting(
        "held-out",
        "folder or glob of shards to measure on; held-out is the last training rows, which stay "
        "unused",
    )
    images: int = setting(128, "rows to measure on")

    def __post_init__(self) -> None:
        place("validation.shards", self.shards)
        at_least(0, "validation.every", self.every)
        at_least(0, "validation.patience", self.patience)
        at_least(1, "validation.images", self.images)
        require(
            self.every > 0 or self.patience == 0,
            f"validation.patience={self.patience} needs measurements; set validation.every",
        )


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
    validation: ValidationConfig = setting(
        ValidationConfig(), "loss on held-out rows, and when it ends the training"
    )

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "keep_checkpoints", "log_every", "max_skipped_steps"):
            at_least(1, name, getattr(self, name))
        place("model", self.model)
        place("output", self.output)
        require(
            self.experiment.strip() != "", "experiment is empty; give it a name, such as autoselect"
        )
        at_least(0, "tune_images", self.tune_images)
        require(
            0 <= self.seed < 2**63, f"seed={self.seed} must lie in 0..2^63-1; choose another number"
        )
