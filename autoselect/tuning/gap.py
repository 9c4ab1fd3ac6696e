"""The gap between removal and noise filling at the end of a training, on rows it did not use."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from autoselect.config import ConfigError
from autoselect.data.loader import collate_usable
from autoselect.data.shards import Sample
from autoselect.method.model import AutoSelect
from autoselect.method.removal import RemovalGap, removal_gaps
from autoselect.method.statistics import TokenStatistics
from autoselect.pruning.selector import Selector
from autoselect.training.checkpoint import CheckpointStore
from autoselect.training.state import TrainingState
from autoselect.training.validation import HELD_OUT
from autoselect.vlm import FrozenVLM
from autoselect.vlm.batches.batch import Collator, TrainBatch

SCORES, SELECTED = "scores", "selected"
IMAGES_PER_BATCH = 16


def last_state(run: str, selector: Selector) -> TrainingState:
    """Return the last checkpoint of the training that made a selector.

    Args:
        run: output folder of the training, with `checkpoints`.
        selector: the selector.

    Raises:
        ConfigError: the folder has no checkpoints, or those of another selector.
    """
    state, _ = CheckpointStore(Path(run) / "checkpoints").first_usable()
    if state is None:
        raise ConfigError(
            f"train_run={run} has no usable checkpoints; give the output folder of a training run"
        )
    config = state.train_config()
    if (config.scorer, config.gate.site) != (selector.scorer.config, selector.site):
        raise ConfigError(
            f"train_run={run} trained a selector of another size or site; give the output folder "
            "of the training that made this selector"
        )
    state.check_made(selector.metadata, f"train_run={run}")
    return state


def rows_of_run(selector: Selector, state: TrainingState) -> dict[str, Any]:
    """Return a selector's metadata, with the rows that its whole training used and was judged by.

    After an early stop the checkpoint has seen more rows than the selector, and the held-out rows
    of the validation have chosen the selector: they become `samples` and `judged_by`.
    """
    metadata, own = selector.metadata, state.train_config().validation
    samples, steps = metadata.get("samples"), metadata.get("steps")
    found = metadata | {"judged_by": own.images if own.patience and own.shards == HELD_OUT else 0}
    if samples and steps:
        found["samples"] = max(samples, samples // steps * state.step)
    return found


def measure_gaps(
    vlm: FrozenVLM,
    selector: Selector,
    samples: Sequence[Sample],
    budgets: Sequence[int],
    state: TrainingState,
) -> dict[str, list[RemovalGap]]:
    """Return the gaps at each budget, by the scores alone and as the selector is used.

    The scores are those of the selector, which may be older than the checkpoint if the training
    kept the best one; the Denoiser is that of the checkpoint.

    Args:
        vlm: the frozen model of the training.
        selector: the selector as it is used, with its diversity.
        samples: rows that neither of them was trained on, see `rows_of_run`.
        budgets: numbers K.
        state: `last_state` of the training.
    """
    config = state.train_config()
    device = torch.device(vlm.device)
    statistics = TokenStatistics.from_tensors(state.statistics).to(device)
    model = AutoSelect(vlm, config, statistics)
    model.denoiser.load_state_dict(state.trained.weights_of("denoiser"))
    model.scorer.load_state_dict(selector.scorer.state_dict())
    for part in (model.denoiser, model.scorer):
        part.to(device)
    model.eval()
    collator = Collator(vlm, config.data.rounds, config.data.max_text_tokens)

    def batches() -> Iterator[TrainBatch]:
        for start in range(0, len(samples), IMAGES_PER_BATCH):
            batch, _ = collate_usable(collator, samples[start : start + IMAGES_PER_BATCH])
            yield batch.to(device)

    choices = {SCORES: selector.like().choose, SELECTED: selector.choose}
    return removal_gaps(model, batches(), budgets, choices)


def gap_rows(gaps: dict[str, list[RemovalGap]]) -> list[dict[str, Any]]:
    """Return the gaps as JSON values, one row per selection and budget."""
    return [
        {"selection": name, "budget": gap.budget} | gap.metrics()
        for name, own in gaps.items()
        for gap in own
    ]


def gap_warning(gaps: dict[str, list[RemovalGap]]) -> str | None:
    """Return the warning of the budget with the largest gap as the selector is used, if any.

    The gap is that of the right answers or of the unended ones, whichever is larger.
    """
    return max(gaps[SELECTED], key=lambda gap: max(gap.gap, gap.ending_gap)).warning()
