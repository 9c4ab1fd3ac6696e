"""Read an ablation from YAML: a list of variants, each with a question and settings."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError, TrainConfig, require
from autoselect.config.bounds import at_least
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import flatten, from_dict, load_config, read_yaml, to_dict
from autoselect.config.gate import with_lowest_budget
from autoselect.config.programs import DEFAULT_DEEPSPEED, DEFAULT_PORT, checkout, setting_flags
from autoselect.config.setting import setting
from autoselect.reference.resources import REFERENCE_ANSWER_TOKENS, REFERENCE_ROWS

OWN_SETTINGS = ("model", "data.train_shards", "output", "seed", "steps", "tracking", "experiment")
PLACING = ("experiment", "tracking", "save_every", "keep_checkpoints", "log_every", "data.workers")
COUNTS = (
    "leak_images",
    "leak_budget",
    "ranks",
    "steps",
    "images",
    "max_new_tokens",
    "rows_per_batch",
)
CHANGEABLE = ("steps", "images", "ranks", "port")
"""Numbers of the YAML that a flag may change."""
DEFAULTS = flatten(to_dict(TrainConfig()))
BEFORE_IT_EXISTED = {"tune_images": 0}
"""What a training did before a setting existed, where that is not the setting's default."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str = setting("", "short name, also of a folder: letters, digits, - and _")
    asks: str = setting("", "question that the row answers")
    train: dict = setting({}, "dotted settings of the training that differ from base")
    eval: dict = setting({}, "settings of `autoselect eval` that differ")
    length: float = setting(1.0, "updates as a multiple of the plan's steps")
    trained_as: str | None = setting(
        None, "variant whose selectors are evaluated instead of training others"
    )

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(
                f"variants: name={self.name!r} must consist of letters, digits, - and _; it names "
                "a folder"
            )
        if not self.asks:
            raise ConfigError(
                f"variants.{self.name}: asks is missing; write the question that it answers"
            )
        if not 0 < self.length < math.inf:
            raise ConfigError(
                f"variants.{self.name}: length={self.length} must be a number above 0, such as 2"
            )
        if self.trained_as is not None and (self.train or self.length != 1):
            raise ConfigError(
                f"variants.{self.name}: trained_as={self.trained_as} excludes train and "
                "length; keep one of them"
            )


@dataclass(frozen=True)
class AblationPlan:
    """An ablation as its YAML gives it."""

    name: str = setting("reference", "name of the MLflow run")
    model: str = setting("reference", "folder or hub name of the VLM, or reference")
    train_shards: str = setting("reference", "folder or glob of the training shards, or reference")
    test_shards: str = setting("reference", "folder or glob of the evaluation shards, or reference")
    deepspeed: str = setting(
        DEFAULT_DEEPSPEED, "DeepSpeed JSON, in the current folder or the checkout"
    )
    ranks: int = setting(2, "training processes of a cell, on this machine")
    port: int = setting(DEFAULT_PORT, "port at which the ranks of a cell meet")
    steps: int = setting(240, "updates of every cell")
    seeds: list = setting([0, 1, 2], "training seeds; every variant is trained once with each")
    images: int = setting(500, "test images")
    budgets: str = setting(
        "8,16,32", "visual tokens kept: counts, ratios or percentages, comma-separated"
    )
    max_new_tokens: int = setting(REFERENCE_ANSWER_TOKENS, "longest answer in tokens")
    rows_per_batch: int = setting(REFERENCE_ROWS, "questions answered together")
    baselines: str = setting(
        "random,grid,pooling,norm,cls_attention,divprune,oracle",
        "baselines that every variant is compared with, comma-separated",
    )
    reference: str = setting("reference", "variant that the others are compared with")
    leak_images: int = setting(200, "test images of the leak measure")
    leak_budget: int = setting(16, "tokens K of the leak measure, whose gates are all K/N")
    experiment: str = setting("autoselect", "MLflow experiment")
    tracking: bool = setting(True, "log to MLflow")
    base: dict = setting({}, "dotted settings of the training that all variants share")
    variants: tuple = setting((), "the rows of the table")

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        trained = [variant.name for variant in self.variants if variant.trained_as is None]
        twice = {name for name in names if names.count(name) > 1}
        require(bool(names), f"variants={names} must name at least one")
        require(
            not twice, f"variants: {sorted(twice)} appear twice; give every variant its own name"
        )
        whole = all(isinstance(seed, int) and seed >= 0 for seed in self.seeds)
        require(
            whole and 0 < len(self.seeds) == len(set(self.seeds)),
            f"seeds={self.seeds} must be one or more different whole numbers",
        )
        for name in COUNTS:
            at_least(1, name, getattr(self, name))
        for variant in self.variants:
            require(
                variant.trained_as in (None, *trained),
                f"variants.{variant.name}: trained_as={variant.trained_as} is not a variant that "
                f"is trained itself; choose one of {trained}",
            )
        require(
            self.reference in names,
            f"reference={self.reference} is not a variant; choose one of {names}",
        )
        for variant in self.variants:
            self.train_config(variant, self.seeds[0])

    def variant(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)

    def settings(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Return the dotted settings of one training run, without its output folder."""
        return {
            "model": self.model,
            "data.train_shards": self.train_shards,
            "steps": max(1, round(self.steps * variant.length)),
            "seed": seed,
            "experiment": self.experiment,
            "tracking": self.tracking,
            **self.base,
            **variant.train,
        }

    def train_config(self, variant: Variant, seed: int) -> TrainConfig:
        """Return the resolved configuration of one training run.

        Raises:
            ConfigError: a setting is unknown, out of range, or fixed by the ablation.
        """
        own = [name for name in OWN_SETTINGS if name in {**self.base, **variant.train}]
        if own:
            raise ConfigError(
                f"variants.{variant.name}: {own[0]} belongs to the ablation; set it at the top of "
                "the YAML (length: 2 doubles the steps of one variant)"
            )
        try:
            return load_config(TrainConfig, None, setting_flags(self.settings(variant, seed)))
        except ConfigError as error:
            raise ConfigError(f"variants.{variant.name}: {error}") from error

    @property
    def deepspeed_file(self) -> Path:
        """Path of the DeepSpeed JSON, in the current folder or else in the checkout."""
        own = Path(self.deepspeed)
        return own if own.is_file() else checkout() / own

    def training(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Return the resolved settings that change what is trained, without output or logging.

        Those of the DeepSpeed file are among them, such as the global batch.
        """
        flat = flatten(to_dict(self.train_config(variant, seed)))
        kept = {name: value for name, value in flat.items() if name not in ("output", *PLACING)}
        return kept | flatten(DeepSpeedConfig.load(self.deepspeed_file).step_settings())

    def cells(self, only: Sequence[str] | None = None) -> Iterator[tuple[Variant, int]]:
        """Yield variant and seed of every cell: all variants with the first seed, then the next.

        `only` names the wanted variants; variants whose selectors they evaluate are added.
        """
        wanted = set(only) if only is not None else {variant.name for variant in self.variants}
        wanted |= {str(v.trained_as) for v in self.variants if v.name in wanted and v.trained_as}
        for seed in self.seeds:
            for variant in self.variants:
                if variant.name in wanted:
                    yield variant, seed


def load_plan(path: Path, changes: Mapping[str, Any] | None = None) -> AblationPlan:
    """Read an ablation from YAML; `changes` replace top-level settings of the file.

    Raises:
        ConfigError: the file is missing or not a YAML mapping, or a setting is unknown or invalid.
    """
    values = read_yaml(path)
    if not isinstance(values.get("variants"), list):
        raise ConfigError(f"config={path} must be a mapping with a list of variants")
    variants = tuple(
        from_dict(Variant, value, f"variants[{i}].") for i, value in enumerate(values["variants"])
    )
    return from_dict(AblationPlan, {**values, **(changes or {}), "variants": variants})


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ, as name -> (before, now).

    A setting that did not exist before is taken to have had its default, unless
    `BEFORE_IT_EXISTED` says otherwise. Notes of earlier versions lack those of the DeepSpeed file,
    and are taken to have had the present ones.
    """
    known = with_lowest_budget({**DEFAULTS, **BEFORE_IT_EXISTED, **before})
    wanted = with_lowest_budget(now)
    return {
        name: (known[name], value)
        for name, value in wanted.items()
        if name in known and known[name] != value
    }
