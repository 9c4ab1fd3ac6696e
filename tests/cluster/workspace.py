"""Make a folder for a tiny training run in seconds: VLM, shards and batch sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GLOBAL_BATCH = 4


@dataclass(frozen=True)
class Workspace:
    """An untrained reference VLM, a few shards and batch sizes for one, two or four ranks."""

    folder: Path

    def make(self) -> Workspace:
        """Write the VLM, the shards and the DeepSpeed settings that do not exist yet."""
        from autoselect.reference.recipe import ReferenceData
        from autoselect.reference.shards import render_shards
        from autoselect.reference.vlm import build_model, save_vlm

        self.folder.mkdir(parents=True, exist_ok=True)
        save_vlm(build_model(), self.folder / "vlm")
        render_shards(self.folder / "shards", ReferenceData(train=64, val=1, test=1), workers=1)
        config = json.loads((ROOT / "configs/deepspeed/zero2.json").read_text())
        config["train_batch_size"] = GLOBAL_BATCH
        config["train_micro_batch_size_per_gpu"] = 1
        (self.folder / "deepspeed.json").write_text(json.dumps(config))
        return self

    def arguments(self, output: str | Path, steps: int, save_every: int = 2) -> list[str]:
        """Return the arguments of autoselect/train.py."""
        settings = {
            "deepspeed": self.folder / "deepspeed.json",
            "model": self.folder / "vlm",
            "data.train_shards": self.folder / "shards" / "train-*.tar",
            "output": output,
            "steps": steps,
            "save_every": save_every,
            "log_every": 1,
            "gate.calibration_images": 8,
            "tune_images": 0,
        }
        return [text for key, value in settings.items() for text in (f"--{key}", str(value))]
