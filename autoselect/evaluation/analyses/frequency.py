"""How often each position is kept: a selector that always keeps the same ones looks at no image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.samples import EvaluationSample


@torch.inference_mode()
def selection_frequency(
    vlm: Any,
    selector: Any,
    samples: Sequence[EvaluationSample],
    budgets: Sequence[int],
    images_per_batch: int = 32,
) -> dict[int, Tensor]:
    """Share of the images in which each position is kept: budget -> [N].

    Args:
        vlm: a `FrozenVLM`.
        selector: a `Selector`.
        samples: the images.
        budgets: tokens kept.
        images_per_batch: images encoded together.
    """
    counts: dict[int, Tensor] = {}
    for start in range(0, len(samples), images_per_batch):
        batch = samples[start : start + images_per_batch]
        visual = vlm.encode_images([sample.image for sample in batch])
        for budget in budgets:
            _, positions = selector.select(visual.tokens, budget, visual.mask)
            kept = positions[positions >= 0].flatten()
            count = torch.bincount(kept, minlength=visual.tokens.shape[1]).cpu()
            counts[budget] = counts.get(budget, torch.zeros_like(count)) + count
    return {budget: count / len(samples) for budget, count in counts.items()}
