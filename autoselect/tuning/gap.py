"""The gap between removal and noise filling at the end of a training, on rows it did not use."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from autoselect.config import ConfigError, TrainConfig
from autoselect.config.files import from_dict
from autoselect.data.loader import collate_usable
from autoselect.data.shards import Sample
from autoselect.method.model import AutoSelect
from autoselect.method.removal import RemovalGap, removal_gaps
from autoselect.method.statistics import TokenStatistics
from autoselect.pruning.selector import Selector
from autoselect.training.checkpoint import CheckpointStore
from autoselect.vlm import FrozenVLM
from autoselect.vlm.text.batch import Collator, TrainBatch

SCORES, SELECTED = "scores", "selected"
IMAGES_PER_BATCH = 16


def measure_gaps(
    vlm: FrozenVLM, selector: Selector, samples: Sequence[Sample], budgets: Sequence[int], run: str
) -> dict[str, list[RemovalGap]]:
    """Return the gaps at each budget, by the scores alone and as the selector is used.

    Args:
        vlm: the frozen model of the training.
        selector: the selector as it is used, with its diversity.
        samples: rows that were not trained on.
        budgets: numbers K.
        run: output folder of the training, with `checkpoints`.

    Raises:
        ConfigError: the folder has no checkpoints.
    """
    state = CheckpointStore(Path(run) / "checkpoints").load()
    if state is None:
        raise ConfigError(
            f"train_run={run} has no checkpoints; give the output folder of a training run"
        )
    config = from_dict(TrainConfig, state.config)
    device = torch.device(vlm.device)
    statistics = TokenStatistics.from_tensors(state.statistics).to(device)
    model = AutoSelect(vlm, config, statistics)
    for name in ("scorer", "denoiser"):
        part = getattr(model, name)
        prefix = f"{name}."
        own = {n: t for n, t in state.trained.weights.items() if n.startswith(prefix)}
        part.load_state_dict({n.removeprefix(prefix): t for n, t in own.items()})
        part.to(device)
    model.eval()
    collator = Collator(vlm, config.data.rounds, config.data.max_text_tokens)

    def batches() -> Iterator[TrainBatch]:
        for start in range(0, len(samples), IMAGES_PER_BATCH):
            batch, _ = collate_usable(collator, samples[start : start + IMAGES_PER_BATCH])
            yield batch.to(device)

    hard = selector.like()
    return {
        name: removal_gaps(model, batches(), budgets, own.choose)
        for name, own in ((SCORES, hard), (SELECTED, selector))
    }


def gap_rows(gaps: dict[str, list[RemovalGap]]) -> list[dict[str, Any]]:
    """Return the gaps as JSON values, one row per selection and budget."""
    return [
        {"selection": name, "budget": gap.budget} | gap.metrics()
        for name, own in gaps.items()
        for gap in own
    ]


def gap_warning(gaps: dict[str, list[RemovalGap]]) -> str | None:
    """Return the warning of the budget with the largest gap as the selector is used, if any."""
    return max(gaps[SELECTED], key=lambda gap: gap.gap).warning()
