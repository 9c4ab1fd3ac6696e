"""The first 20 of the 240 steps of the reference run, small: one rank, float32, four images a step.

    python tests/golden/reference_run.py            prints the curve
    python tests/golden/reference_run.py --write    replaces reference_run.json

Write it anew only when a change is meant to change the numbers (a default setting, the shipped
VLM, the rendered data, an operator), and say so in the commit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import islice
from pathlib import Path

GOLDEN = Path(__file__).with_suffix(".json")
ROOT = Path(__file__).parents[2]
STEPS = 20
RECORDED = ("train/loss", "train/gradient_norm", "train/polarisation", "train/token_budget")


def curve(folder: Path) -> dict[str, list[float]]:
    """Train in `folder` and return the recorded metrics of every step."""
    import torch

    from autoselect.config import TrainConfig
    from autoselect.config.deepspeed import DeepSpeedConfig
    from autoselect.config.files import from_dict
    from autoselect.ranks import processes
    from autoselect.ranks.heartbeat import Heartbeat
    from autoselect.ranks.signals import SignalFlag
    from autoselect.reference.recipe import ReferenceData
    from autoselect.reference.resources import resolve_model
    from autoselect.reference.shards import render_shards
    from autoselect.training.run import assemble

    torch.set_num_threads(1)
    info = processes.RankInfo(rank=0, world_size=1, local_rank=0, source="single")
    processes.set_accelerator_default()
    processes.init_distributed(info, processes.choose_device(info))
    render_shards(folder / "shards", ReferenceData(train=64, val=1, test=1), workers=1)
    shipped = DeepSpeedConfig.load(ROOT / "configs" / "deepspeed" / "zero2.json")
    deepspeed = shipped.with_batch(4, 2)
    values = {
        "model": resolve_model("reference"),
        "output": str(folder / "run"),
        "tracking": False,
        "dtype": "float32",
        "data": {"train_shards": str(folder / "shards" / "train-*.tar")},
        "gate": {"calibration_images": 32},
    }
    config = from_dict(TrainConfig, values)
    trainer = assemble(config, deepspeed, info, SignalFlag(), Heartbeat(info))
    taken: dict[str, list[float]] = {name: [] for name in RECORDED}
    for batches in islice(trainer.loader, STEPS):
        metrics = trainer.update([batch.to(trainer.device) for batch in batches])
        trainer.step += 1
        for name, values_of_step in taken.items():
            values_of_step.append(round(metrics[name], 7))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"replace {GOLDEN.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        taken = curve(Path(folder))
    if arguments.write:
        GOLDEN.write_text(json.dumps(taken, indent=1) + "\n")
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
