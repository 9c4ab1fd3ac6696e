"""A toy AutoSelect for the distributed tests: a frozen bfloat16 part and a trained float32 part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.ranks.processes import (
    RankInfo,
    choose_device,
    init_distributed,
    set_accelerator_default,
)

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
GLOBAL_BATCH = 8
WIDTH = 16


class Toy(torch.nn.Module):
    """`inputs [B, WIDTH] -> loss`; odd sizes, so that no partition fits evenly."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.frozen = torch.nn.Linear(WIDTH, WIDTH).to(torch.bfloat16).requires_grad_(False)
        self.trained = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 33), torch.nn.GELU(), torch.nn.Linear(33, 5)
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.trained(self.frozen(inputs.bfloat16()).float()).square().mean()


def start() -> RankInfo:
    """Join the ranks of this worker over gloo."""
    set_accelerator_default()
    torch.set_num_threads(1)
    info = RankInfo.from_environment()
    init_distributed(info, choose_device(info), timeout_s=60)
    return info


def make_engine(config_name: str, info: RankInfo) -> Any:
    """Build an engine on the toy with a shipped configuration and small batches."""
    import deepspeed

    shipped = DeepSpeedConfig.load(CONFIGS / f"{config_name}.json")
    config = shipped.with_batch(GLOBAL_BATCH, GLOBAL_BATCH // 4).to_dict()
    model = Toy()
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, config=config, model_parameters=trained)
    for group in engine.basic_optimizer.param_groups:
        group.update(lr=1e-2, weight_decay=0.1)
    return engine


def rows(engine: Any, info: RankInfo, step: int, micro: int) -> torch.Tensor:
    """Return one micro-batch: a slice of a global batch that depends on `step` alone."""
    batch = torch.randn(GLOBAL_BATCH, WIDTH, generator=torch.Generator().manual_seed(1000 + step))
    size = engine.train_micro_batch_size_per_gpu()
    first = (micro * info.world_size + info.rank) * size
    return batch[first : first + size]
