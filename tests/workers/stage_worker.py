"""Ranks of `tests/test_stages.py`: the real trainer, once for each DeepSpeed file.

Usage: torchrun --nproc_per_node N stage_worker.py FOLDER STEPS NAME [NAME ...]

FOLDER holds `vlm`, `shards`, and is where `NAME-ranks` output folders go. NAME is a file of
configs/deepspeed, with `+micro` for micro-batches of one sample, `+recompute` for activation
checkpointing, `+options` for soft removal and coverage, and `+mixed` to read the folder `mixed`,
in which some samples have no image.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import from_dict
from autoselect.ranks.heartbeat import Heartbeat
from autoselect.ranks.processes import leave, shutdown_distributed
from autoselect.ranks.signals import SignalFlag
from autoselect.training.run import assemble
from tests.workers.toy import CONFIGS, start

GLOBAL_BATCH = 4


def main(folder: Path, steps: int, names: list[str]) -> None:
    info = start()
    for name in names:
        config_name, *options = name.split("+")
        shipped = DeepSpeedConfig.load(CONFIGS / f"{config_name}.json").to_dict()
        micro = 1 if "micro" in options else GLOBAL_BATCH // info.world_size
        # Adam divides by the gradient's size: with the usual eps of 1e-8 it turns rounding of
        # gradients near zero into whole updates. A larger one makes the comparison meaningful.
        shipped["optimizer"]["params"]["eps"] = 1e-4
        deepspeed = DeepSpeedConfig(shipped).with_batch(GLOBAL_BATCH, micro)
        shards = "mixed" if "mixed" in options else "shards"
        values = {
            "model": str(folder / "vlm"),
            "output": str(folder / f"{name}-{info.world_size}"),
            "steps": steps,
            "save_every": steps,
            "tracking": False,
            "activation_checkpointing": "recompute" in options,
            # Of `mixed`, an eighth has no answer and is replaced by blanks.
            "data": {
                "train_shards": str(folder / shards / "train-*.tar"),
                "quarantine_budget": 0.125,
            },
            # A sharp gate multiplies rounding by 1 / temperature in every step.
            "gate": {"calibration_images": 8, "temperature_end": 0.5}
            | ({"soft_removal": True, "coverage": 0.5} if "options" in options else {}),
        }
        config = from_dict(TrainConfig, values)
        with Heartbeat(info) as heartbeat:
            assert assemble(config, deepspeed, info, SignalFlag(), heartbeat).run()
    if info.is_main:
        (folder / f"done-{info.world_size}.json").write_text(json.dumps(names))
    shutdown_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    leave(0)
