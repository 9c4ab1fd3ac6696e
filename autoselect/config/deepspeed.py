"""The DeepSpeed JSON: the one owner of batch sizes, precision, ZeRO stage and clipping.

The trained part stays in float32 at every stage, so no file of ours switches `bf16` or `fp16`
on: the frozen model brings its own dtype, and gradients are accumulated and communicated in
float32.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError, TrainConfig, require
from autoselect.config.adam import EXAMPLE, check_adam
from autoselect.config.files import to_dict
from autoselect.config.json_values import check_object, is_count, is_number

BATCH_KEYS = frozenset({"train_batch_size", "train_micro_batch_size_per_gpu"})
KNOWN_KEYS = BATCH_KEYS | {
    "gradient_clipping",
    "communication_data_type",
    "data_types",
    "optimizer",
    "zero_optimization",
    "comms_logger",
    "flops_profiler",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
}
FLOAT32_NAMES = ("fp32", "float32")


@dataclass(frozen=True)
class BatchSizes:
    """Samples per optimiser step: `total == micro * accumulation * world_size`."""

    total: int
    micro: int
    accumulation: int


@dataclass(frozen=True)
class DeepSpeedConfig:
    """A DeepSpeed configuration, checked when it is made.

    Args:
        values: content of the JSON file; `to_dict` returns a copy of it for DeepSpeed.

    Raises:
        ConfigError: a top-level key is unknown or missing, a value is out of range, or gradients
            would leave float32.
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", copy.deepcopy(dict(self.values)))
        _check_keys(self.values)
        _check_values(self.values)

    @classmethod
    def load(cls, path: str | Path) -> DeepSpeedConfig:
        """Read and check a DeepSpeed JSON file.

        Raises:
            ConfigError: the file is missing, is not a JSON object, or breaks a rule.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(
                f"deepspeed={path} does not exist; choose one of configs/deepspeed/*.json"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"deepspeed={path} is not valid JSON: {error}; correct it") from error
        except OSError as error:
            raise ConfigError(f"deepspeed={path} cannot be read: {error}; mend that") from error
        if not isinstance(values, dict):
            found = type(values).__name__
            raise ConfigError(f"deepspeed={path} holds a {found}, not a JSON object; use braces")
        try:
            return cls(values)
        except ConfigError as error:
            raise ConfigError(f"deepspeed={path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(dict(self.values))

    def with_batch(self, total: int, micro: int) -> DeepSpeedConfig:
        """Return the same configuration with another global and micro batch, in samples."""
        sizes = {"train_batch_size": total, "train_micro_batch_size_per_gpu": micro}
        return DeepSpeedConfig({**self.values, **sizes})

    @property
    def total_batch(self) -> int:
        """Samples of one optimiser step, all ranks together."""
        return int(self.values["train_batch_size"])

    @property
    def micro_batch(self) -> int:
        """Samples that one rank computes at once."""
        return int(self.values["train_micro_batch_size_per_gpu"])

    @property
    def gradient_clipping(self) -> float:
        """Largest gradient norm; 0 is off."""
        return float(self.values.get("gradient_clipping", 0.0))

    @property
    def optimizer(self) -> dict[str, Any]:
        """Type and parameters of the optimiser."""
        return dict(self.values["optimizer"])

    @property
    def zero_stage(self) -> int:
        """0 if the file has no stage."""
        return int(self.values.get("zero_optimization", {}).get("stage", 0))

    @property
    def offloads_parameters(self) -> bool:
        """True if ZeRO-3 keeps parameters in CPU memory or on NVMe."""
        offload = self.values.get("zero_optimization", {}).get("offload_param", {})
        return self.zero_stage == 3 and bool(re.search("cpu|nvme", json.dumps(offload)))

    def step_settings(self) -> dict[str, Any]:
        """Return what decides the numbers of a step, however the batch is split over ranks."""
        return {
            "train_batch_size": self.total_batch,
            "gradient_clipping": self.gradient_clipping,
            "optimizer": self.optimizer,
        }

    def split(self, world_size: int) -> BatchSizes:
        """Split the global batch over the ranks.

        The number of accumulation steps follows from the world size instead of being stated in the
        file, so one file gives the same global batch on any number of ranks.

        Raises:
            ConfigError: the global batch is not a multiple of micro batch x ranks.
        """
        total, micro = self.total_batch, self.micro_batch
        together = micro * world_size
        accumulation, rest = divmod(total, together)
        if rest or accumulation < 1:
            fitting = [m for m in range(1, total + 1) if total % (m * world_size) == 0]
            fix = (
                f"choose train_micro_batch_size_per_gpu from {fitting}"
                if fitting
                else f"choose a train_batch_size that is a multiple of {together}, such as "
                f"{-(-total // together) * together}"
            )
            raise ConfigError(
                f"train_batch_size={total} is not a multiple of "
                f"train_micro_batch_size_per_gpu={micro} x {world_size} ranks; {fix}"
            )
        return BatchSizes(total, micro, accumulation)


def resolved_settings(config: TrainConfig, deepspeed: DeepSpeedConfig) -> dict[str, Any]:
    """Return what `config.yaml` of a run folder holds: every setting, and the DeepSpeed file."""
    return {"train": to_dict(config), "deepspeed": deepspeed.to_dict()}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"key {key!r} appears twice in the DeepSpeed JSON; keep one of them")
    return dict(pairs)


def _check_keys(values: Mapping[str, Any]) -> None:
    unknown = sorted(set(values) - KNOWN_KEYS)
    if {"bf16", "fp16"} & set(unknown):
        raise ConfigError(
            "bf16/fp16 would convert the trained part, which is kept in float32; remove the key "
            "(the dtype of the frozen model is an option of the training configuration)"
        )
    if "activation_checkpointing" in unknown:
        raise ConfigError(
            "activation_checkpointing would have no effect here, because it is a setting of the "
            "training; remove the key and give --activation_checkpointing true"
        )
    if unknown:
        known = ", ".join(sorted(KNOWN_KEYS))
        raise ConfigError(f"unknown key {', '.join(unknown)}; known keys: {known}")
    missing = sorted(BATCH_KEYS - set(values))
    if missing:
        raise ConfigError(f"missing key {', '.join(missing)}; add it as a positive integer")
    if "optimizer" not in values:
        raise ConfigError(f"missing key optimizer; add {EXAMPLE}")


def _check_values(values: Mapping[str, Any]) -> None:
    for key in sorted(BATCH_KEYS):
        require(
            is_count(values[key]),
            f"{key}={values[key]!r} is not a positive integer; give a number of samples",
        )
    for key in ("zero_optimization", "data_types"):
        check_object(key, values.get(key, {}))
    check_adam(values["optimizer"])
    clipping = values.get("gradient_clipping", 0.0)
    require(
        is_number(clipping), f"gradient_clipping={clipping!r} must be 0 (off) or a norm above 0"
    )
    every = values.get("steps_per_print", 10)
    require(is_count(every), f"steps_per_print={every!r} is not a positive integer; leave it out")
    data_types = dict(values.get("data_types", {}))
    accumulation = data_types.pop("grad_accum_dtype", "fp32")
    if data_types:
        raise ConfigError(
            f"unknown key data_types.{next(iter(data_types))}; known key: grad_accum_dtype"
        )
    for key, value in (
        ("data_types.grad_accum_dtype", accumulation),
        ("communication_data_type", values.get("communication_data_type", "fp32")),
    ):
        if value not in FLOAT32_NAMES:
            raise ConfigError(f"{key}={value!r} loses gradient bits; set it to 'fp32'")
    stage = values.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(f"zero_optimization.stage={stage!r} is unknown; choose 0, 1, 2 or 3")
