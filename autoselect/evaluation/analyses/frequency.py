"""Count how often each position is kept; equal positions for all images ignore their content."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.samples import EvaluationSample, encode_samples


@torch.inference_mode()
def selection_frequency(
    vlm: Any,
    selector: Any,
    samples: Sequence[EvaluationSample],
    budgets: Sequence[int],
    images_per_batch: int = 32,
) -> dict[int, Tensor]:
    """Return the share of images in which each position is kept, [N], by budget."""
    counts: dict[int, Tensor] = {}
    for start in range(0, len(samples), images_per_batch):
        batch = samples[start : start + images_per_batch]
        visual = encode_samples(vlm, batch, selector.site)
        for budget in budgets:
            _, positions = selector.select(visual.tokens, budget, visual.mask)
            kept = positions[positions >= 0].flatten()
            count = torch.bincount(kept, minlength=visual.tokens.shape[1]).cpu()
            counts[budget] = counts.get(budget, torch.zeros_like(count)) + count
    return {budget: count / len(samples) for budget, count in counts.items()}
