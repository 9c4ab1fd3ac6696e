"""Ranks of `tests/test_stages.py`: a mixture of experts of no listed family, whole and sharded.

Usage: torchrun --nproc_per_node N experts_worker.py FOLDER

FOLDER holds the weights of a tiny model as they are on the hub, a tensor per expert. Every stage
loads them, tries the contract that models without an entry must fulfil, and makes three steps.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import from_dict
from autoselect.method.gating import GateSetting
from autoselect.method.model import AutoSelect
from autoselect.method.statistics import TokenStatistics
from autoselect.ranks.processes import RankInfo, leave, shutdown_distributed
from autoselect.training.run import build_engine
from autoselect.training.sharded_loading import sharded_loading
from autoselect.vlm import Collator, FrozenVLM
from tests.vlm import tiny_processors
from tests.vlm.conversations import SQUARE, WIDE, sample
from tests.vlm.tiny_prompts import WIDTH
from tests.workers.toy import CONFIGS, start

SETTINGS = {
    "scorer": {"hidden_size": 16, "num_heads": 2},
    "gate": {"token_budget": 3, "min_token_budget": None},
}


def steps(folder: Path, stage: str, info: RankInfo) -> dict[str, object]:
    """Return the losses of three steps of this rank and its share of the frozen weights."""
    deepspeed = DeepSpeedConfig.load(CONFIGS / f"{stage}.json").with_batch(info.world_size, 1)
    with sharded_loading(deepspeed, torch.float32):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    held = sum(getattr(p, "ds_tensor", p).numel() for p in model.parameters())
    whole = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    vlm = FrozenVLM(model, tiny_processors.qwen3_vl(), folder.name)
    batch = Collator(vlm, "conversation")([sample(info.rank, (WIDE if info.rank else SQUARE,))])
    torch.manual_seed(0)
    config = from_dict(TrainConfig, SETTINGS)
    statistics = TokenStatistics(torch.zeros(WIDTH), torch.ones(WIDTH), participation_ratio=1.0)
    engine = build_engine(AutoSelect(vlm, config, statistics), config, deepspeed)
    losses = []
    for step in range(3):
        output = engine(batch, GateSetting(3, 1.0, 0, step))
        engine.backward(output.loss_sum / 10)
        engine.step()
        losses.append(float(output.loss_sum.detach()))
    return {"losses": losses, "held": held / whole}


def main(folder: Path) -> None:
    info = start()
    found = {stage: steps(folder / "experts", stage, info) for stage in ("zero0", "zero3")}
    (folder / f"experts-{info.rank}.json").write_text(json.dumps(found))
    shutdown_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
