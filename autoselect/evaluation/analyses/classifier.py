"""Figure 3: apply the selection mask to an image classifier that never saw the LLM.

The mask is resized from the VLM's token grid to the classifier's patch grid, and dropped patches
are removed from its sequence. A selection that keeps what matters keeps the classifier's accuracy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.data.shards import Sample
from autoselect.evaluation.methods.ranking import random_scores
from autoselect.evaluation.samples import LazySequence, decoded
from autoselect.ops.hard_top_k import hard_top_k
from autoselect.pruning.budget import budget_to_tokens
from autoselect.vlm.image_classifier import Preprocess, grid, only_patches
from autoselect.vlm.rasters import Span, part_seen

OWN_PREDICTION = "the classifier's own prediction with all patches"
IMAGES_PER_BATCH = 32


@dataclass(frozen=True)
class LabelledImages:
    """Images and their classes.

    Attributes:
        labels: class index of each; None to compare with the classifier's own prediction.
        source: where the labels come from.
    """

    images: Sequence[Image.Image]
    labels: list[int] | None
    source: str


def labelled_images(
    samples: Sequence[Sample],
    names: dict[str, int],
    label_of: Callable[[dict[str, Any]], int | None] | None = None,
) -> LabelledImages:
    """Return the first image of each shard sample with its class.

    Args:
        samples: samples of the shards; those without an image are skipped.
        names: class index by class name of the classifier.
        label_of: returns the class index of a record; by default read from its `label`.

    Raises:
        ConfigError: only some records have a class, or the classifier does not know a class.
    """
    read = label_of or (lambda record: _label(record, names))
    found = {i: read(sample.record) for i, sample in enumerate(samples) if sample.images}
    places, labels = list(found), list(found.values())
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        lacking = samples[places[labels.index(None)]].key
        raise ConfigError(
            f"label of sample {lacking!r} is missing while others have one; label every record, "
            "or none"
        )
    source = ("the colour of the largest object" if label_of else "the records") if known else ""
    images = LazySequence(lambda number: decoded(samples[places[number]])[0], len(places))
    return LabelledImages(images, known or None, source or OWN_PREDICTION)


def _label(record: dict[str, Any], names: dict[str, int]) -> int | None:
    label = record.get("label")
    if label is None or (isinstance(label, int) and label in names.values()):
        return label
    if not isinstance(label, str) or label not in names:
        raise ConfigError(
            f"label={label!r} is not one of the classifier's {len(names)} classes; write its "
            "index or one of its names"
        )
    return names[label]


def resize_selection(positions: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Return the positions on another grid that cover the selected area best, [B, K'].

    The mask is resized bilinearly, with antialiasing on a coarser grid, and the K' largest cells
    are selected; K' keeps the share of selected cells.

    Args:
        positions: kept positions on `source`, [B, K].
        source: rows and columns of the selection.
        target: rows and columns of the classifier.
    """
    cells, wanted = source[0] * source[1], target[0] * target[1]
    mask = torch.zeros(len(positions), cells, device=positions.device).scatter(1, positions, 1.0)
    resized = torch.nn.functional.interpolate(
        mask.view(-1, 1, *source), target, mode="bilinear", antialias=True, align_corners=False
    )
    count = max(1, round(positions.shape[1] * wanted / cells))
    return hard_top_k(resized.flatten(1), count)


def part_of(image: Image.Image, part: tuple[Span, Span]) -> Image.Image:
    """Return a part of a picture as `part_seen` gives it; outside of the picture it is black."""
    if part == ((0, 1), (0, 1)):
        return image
    (left, right), (top, bottom) = part
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round(right * width), round(bottom * height))
    )


@torch.inference_mode()
def classifier_accuracy(
    vlm: Any,
    selector: Any,
    classifier: Any,
    preprocess: Preprocess,
    data: LabelledImages,
    budgets: Sequence[int],
) -> dict[str, Any]:
    """Return a classifier's top-1 accuracy with all, selected and random patches.

    The selector chooses as it does in use, its diversity included. If images differ in size, each
    has a grid of its own and is treated alone. The classifier gets the part of a picture that the
    VLM sees, because the mask covers only that.

    Args:
        vlm: a `FrozenVLM` whose tokens form a grid.
        classifier: a ViT-like transformers image classifier.
        preprocess: turns images into pixel values.
        budgets: tokens kept of the first image's grid; the same share stays of any other grid.

    Returns:
        `full`, and by budget `selected` and `random`: accuracies, or for images without labels the
        share of unchanged predictions; also both `grids` (that of the first image) and the source
        of the `labels`.

    Raises:
        ConfigError: the VLM's tokens form no grid.
    """
    images, labels = data.images, data.labels
    seen = lru_cache(partial(part_seen, vlm.seen))
    right: dict[str, list[bool]] = {}
    first: tuple[int, int] | None = None
    images_per_batch = 1 if vlm.num_tokens is None else IMAGES_PER_BATCH
    for start in range(0, len(images), images_per_batch):
        batch = list(images[start : start + images_per_batch])
        pixels = preprocess([part_of(image, seen(image.size)) for image in batch]).to(
            classifier.device
        )
        patches = grid(classifier, pixels)
        whole = classifier(pixels).logits.argmax(dim=-1).cpu()
        stop = start + images_per_batch
        truth = whole if labels is None else torch.tensor(labels[start:stop])
        visual = vlm.encode_images(batch, selector.site)
        shape = vlm.grid_of(batch[0])
        if shape is None:
            raise ConfigError(
                f"model={vlm.name} gives tokens that form no grid, so the mask cannot be resized; "
                "choose a model with a grid"
            )
        first = first or shape
        keys = [str(start + i) for i in range(len(batch))]
        random = random_scores(keys, visual.tokens.shape[1]).to(visual.tokens.device)

        def note(name: str, pixels: Tensor = pixels, truth: Tensor = truth) -> None:
            found = classifier(pixels).logits.argmax(dim=-1).cpu()
            right.setdefault(name, []).extend((found == truth).tolist())

        note("full")
        for budget in budgets:
            count = _same_share(budget, first, shape)
            chosen = {
                "selected": selector.select(visual.tokens, count)[1],
                "random": hard_top_k(random, count),
            }
            for name, kept in chosen.items():
                target = resize_selection(kept, shape, patches)
                with only_patches(classifier, target):
                    note(f"{name}@{budget}")
    mean = {name: sum(values) / len(values) for name, values in right.items()}
    return {
        "labels": data.source,
        "images": len(images),
        "grids": {"selection": list(first or ()), "classifier": list(patches)},
        "full": mean["full"],
        "budgets": list(budgets),
        "selected": [mean[f"selected@{budget}"] for budget in budgets],
        "random": [mean[f"random@{budget}"] for budget in budgets],
    }


def _same_share(budget: int, first: tuple[int, int], grid: tuple[int, int]) -> int:
    """Return the tokens of a grid that are the share which `budget` is of the first grid."""
    whole, cells = first[0] * first[1], grid[0] * grid[1]
    return budget if cells == whole else budget_to_tokens(budget / whole, cells)
