"""Ranks of `tests/test_stages.py`: loads a VLM split over the ranks and compares it to a whole one.

Usage: torchrun --nproc_per_node N loading_worker.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from PIL import Image

from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.ranks.processes import leave, shutdown_distributed
from autoselect.training.sharded_loading import sharded_loading
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.sharded import gathered
from tests.workers.toy import CONFIGS, start


def compare(folder: Path, dtype: torch.dtype) -> dict[str, object]:
    """Compare the sharded model, gathered, with a whole one; count what this rank holds."""
    config = DeepSpeedConfig.load(CONFIGS / "zero3.json")
    whole = FrozenVLM.from_pretrained(folder / "vlm", dtype=dtype)
    with sharded_loading(config, dtype):
        sharded = FrozenVLM.from_pretrained(folder / "vlm", dtype=dtype)
    pairs = list(zip(sharded.model.named_parameters(), whole.model.named_parameters(), strict=True))
    held = sum(p.numel() + p.ds_tensor.numel() for (_, p), _ in pairs)
    different = []
    for (name, part), (_, expected) in pairs:
        with gathered([part]):
            if part.dtype != dtype or not torch.equal(part, expected):
                different.append(name)
    images = [Image.new("RGB", (96, 96), (5, 100, 9))]
    with gathered(sharded.model.parameters()):
        ours, theirs = (vlm.encode_images(images).tokens for vlm in (sharded, whole))
        tokens_equal = torch.equal(ours, theirs)
    return {
        "held": held,
        "all": sum(p.numel() for p in whole.model.parameters()),
        "different": different,
        "tokens_equal": tokens_equal,
    }


def main(folder: Path) -> None:
    info = start()
    results = {str(dtype): compare(folder, dtype) for dtype in (torch.bfloat16, torch.float32)}
    (folder / f"loading-{info.rank}.json").write_text(json.dumps(results))
    shutdown_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
