"""The DeepSpeed JSON: the one owner of batch sizes, precision, ZeRO stage and clipping.

The trained part stays in float32 at every stage, so no file of ours switches `bf16` or `fp16`
on: the frozen model brings its own dtype, and gradients are accumulated and communicated in
float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError

REQUIRED_KEYS = frozenset({"train_batch_size", "train_micro_batch_size_per_gpu"})
KNOWN_KEYS = REQUIRED_KEYS | {
    "gradient_clipping",
    "communication_data_type",
    "data_types",
    "optimizer",
    "zero_optimization",
    "activation_checkpointing",
    "comms_logger",
    "flops_profiler",
    "prescale_gradients",
    "gradient_predivide_factor",
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


def load_deepspeed_config(path: str | Path) -> dict[str, Any]:
    """Reads and checks a DeepSpeed JSON file.

    Raises:
        ConfigError: the file is missing or no JSON object, a top-level key is unknown or missing,
            a batch size is no positive integer, or gradients would leave float32.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"deepspeed={path} does not exist; choose one of configs/deepspeed/*.json"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"deepspeed={path} is not valid JSON: {error}; correct it") from error
    if not isinstance(config, dict):
        raise ConfigError(f"deepspeed={path} holds a {type(config).__name__}, not a JSON object")
    try:
        check_deepspeed_config(config)
    except ConfigError as error:
        raise ConfigError(f"deepspeed={path}: {error}") from error
    return config


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"key {key!r} appears twice in the DeepSpeed JSON; keep one of them")
    return dict(pairs)


def check_deepspeed_config(config: Mapping[str, Any]) -> None:
    """Checks a DeepSpeed configuration that is already a mapping.

    Raises:
        ConfigError: as `load_deepspeed_config`.
    """
    unknown = sorted(set(config) - KNOWN_KEYS)
    if {"bf16", "fp16"} & set(unknown):
        raise ConfigError(
            "bf16/fp16 would convert the trained part, which is kept in float32; remove the key "
            "(the dtype of the frozen model is an option of the training configuration)"
        )
    if unknown:
        known = ", ".join(sorted(KNOWN_KEYS))
        raise ConfigError(f"unknown key {', '.join(unknown)}; known keys: {known}")
    missing = sorted(REQUIRED_KEYS - set(config))
    if missing:
        raise ConfigError(f"missing key {', '.join(missing)}; add it as a positive integer")
    for key in sorted(REQUIRED_KEYS):
        _check_positive_integer(key, config[key])
    for key in ("zero_optimization", "data_types", "optimizer"):
        if not isinstance(config.get(key, {}), Mapping):
            raise ConfigError(f"{key}={config[key]!r} is no JSON object; give settings in braces")
    clipping = config.get("gradient_clipping", 0.0)
    if isinstance(clipping, bool) or not isinstance(clipping, int | float) or clipping < 0:
        raise ConfigError(f"gradient_clipping={clipping!r} must be 0 (off) or a norm above 0")
    _check_float32(config)
    zero_stage(config)


def _check_positive_integer(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}={value!r} is not a positive integer; give a number of samples")


def _check_float32(config: Mapping[str, Any]) -> None:
    accumulation = config.get("data_types", {}).get("grad_accum_dtype", "fp32")
    for key, value in (
        ("data_types.grad_accum_dtype", accumulation),
        ("communication_data_type", config.get("communication_data_type", "fp32")),
    ):
        if value not in FLOAT32_NAMES:
            raise ConfigError(f"{key}={value!r} loses gradient bits; set it to 'fp32'")


def zero_stage(config: Mapping[str, Any]) -> int:
    """The ZeRO stage, 0 when the file has none.

    Raises:
        ConfigError: the stage is not 0, 1, 2 or 3.
    """
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(f"zero_optimization.stage={stage!r} is unknown; choose 0, 1, 2 or 3")
    return int(stage)


def step_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a checked configuration decides the numbers of a step, however it is split."""
    return {
        "train_batch_size": config["train_batch_size"],
        "gradient_clipping": config.get("gradient_clipping", 0.0),
        "optimizer": config.get("optimizer", {}),
    }


def batch_sizes(config: Mapping[str, Any], world_size: int) -> BatchSizes:
    """Splits the global batch of a checked configuration over the ranks.

    The number of accumulation steps is not stated in the file but follows from the world size,
    so one file gives the same global batch on any number of ranks.

    Raises:
        ConfigError: the global batch is no multiple of micro batch x ranks.
    """
    total = config["train_batch_size"]
    micro = config["train_micro_batch_size_per_gpu"]
    accumulation, rest = divmod(total, micro * world_size)
    if rest or accumulation < 1:
        fitting = [m for m in range(1, total + 1) if total % (m * world_size) == 0]
        fix = (
            f"choose train_micro_batch_size_per_gpu from {fitting}"
            if fitting
            else f"choose a train_batch_size that is a multiple of {world_size}"
        )
        raise ConfigError(
            f"train_batch_size={total} is not a multiple of train_micro_batch_size_per_gpu={micro} "
            f"x {world_size} ranks; {fix}"
        )
    return BatchSizes(total, micro, accumulation)
