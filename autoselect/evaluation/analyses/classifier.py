"""Figure 3: the selection mask drives an image classifier that never saw the LLM.

The mask of the VLM's grid is resized to the classifier's grid, and the unselected patches are taken
out of its sequence. A selection that keeps what matters keeps the classifier's accuracy.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoselect.evaluation.context import SelectionContext
from autoselect.evaluation.ranking import random_scores
from autoselect.ops.hard_top_k import hard_top_k

Preprocess = Callable[[list[Image.Image]], Tensor]


def resize_selection(positions: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Positions on another grid that cover the selected area best, [B, K'].

    K' keeps the share of selected cells. The mask is resized bilinearly, smoothed where the target
    is coarser; the cells with the largest values are selected.

    Args:
        positions: kept positions on `grid`, [B, K].
        grid: rows and columns of the selection.
        target: rows and columns of the classifier.
    """
    cells, wanted = grid[0] * grid[1], target[0] * target[1]
    mask = torch.zeros(len(positions), cells, device=positions.device).scatter(1, positions, 1.0)
    resized = torch.nn.functional.interpolate(
        mask.view(-1, 1, *grid), target, mode="bilinear", antialias=True, align_corners=False
    )
    count = max(1, round(positions.shape[1] * wanted / cells))
    return hard_top_k(resized.flatten(1), count)


@contextmanager
def only_patches(classifier: Any, positions: Tensor) -> Iterator[None]:
    """Let a ViT-like transformers classifier see only some of its patches.

    The embedding layer's output loses the rows of the other patches; class and register tokens
    stay. Position embeddings were added before, so what is left keeps its place.

    Args:
        classifier: a model whose `base_model.embeddings` gives [B, extra + patches, C].
        positions: patches that stay, [B, K].
    """

    def drop(module: Any, inputs: Any, output: Tensor) -> Tensor:
        extra = output.shape[1] - patch_count(classifier)
        first = torch.arange(extra, device=output.device).expand(len(output), -1)
        kept = torch.cat([first, positions.to(output.device) + extra], dim=1)
        return output.gather(1, kept[..., None].expand(-1, -1, output.shape[2]))

    hook = classifier.base_model.embeddings.register_forward_hook(drop)
    try:
        yield
    finally:
        hook.remove()


def classifier_grid(classifier: Any) -> tuple[int, int]:
    """Rows and columns of the classifier's patches."""
    size, patch = classifier.config.image_size, classifier.config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    return height // patch, width // patch


def patch_count(classifier: Any) -> int:
    """Number of the classifier's patches."""
    rows, columns = classifier_grid(classifier)
    return rows * columns


@torch.inference_mode()
def classifier_accuracy(
    vlm: Any,
    selector: Any,
    classifier: Any,
    preprocess: Preprocess,
    images: Sequence[Image.Image],
    labels: Sequence[int],
    budgets: Sequence[int],
    images_per_batch: int = 32,
) -> dict[str, Any]:
    """Top-1 accuracy of a classifier with all patches, with the selected and with random ones.

    Args:
        vlm: a `FrozenVLM` whose tokens form a grid.
        selector: a `Selector`.
        classifier: a ViT-like transformers image classifier.
        preprocess: images to its pixel values.
        images: RGB.
        labels: class index of each image.
        budgets: tokens kept of the VLM's grid.
        images_per_batch: images classified together.

    Returns:
        `full`, and by budget `selected` and `random`: accuracies.
    """
    right: dict[str, list[bool]] = {}
    for start in range(0, len(images), images_per_batch):
        batch = list(images[start : start + images_per_batch])
        truth = torch.tensor(labels[start : start + images_per_batch])
        pixels = preprocess(batch).to(classifier.device)
        visual = vlm.encode_images(batch)
        keys = tuple(str(start + i) for i in range(len(batch)))
        context = SelectionContext(visual.tokens, keys, grid=visual.grid)

        def note(name: str, pixels: Tensor = pixels, truth: Tensor = truth) -> None:
            found = classifier(pixels).logits.argmax(dim=-1).cpu()
            right.setdefault(name, []).extend((found == truth).tolist())

        note("full")
        for budget in budgets:
            scores = {"selected": selector.score(visual.tokens), "random": random_scores(context)}
            for name, values in scores.items():
                kept = hard_top_k(values.float(), budget)
                target = resize_selection(kept, visual.grid, classifier_grid(classifier))
                with only_patches(classifier, target):
                    note(f"{name}@{budget}")
    mean = {name: sum(values) / len(values) for name, values in right.items()}
    return {
        "full": mean["full"],
        "budgets": list(budgets),
        "selected": [mean[f"selected@{budget}"] for budget in budgets],
        "random": [mean[f"random@{budget}"] for budget in budgets],
    }
