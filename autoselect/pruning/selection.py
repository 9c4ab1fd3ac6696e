"""Selection of the visual tokens of each image of a call: scores, budgets, hard top-K.

Dimension letters: I images of the call, N visual tokens of one image, K tokens that stay, B rows, T
columns of the call, S columns that stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.pruning.budget import budget_to_tokens
from autoselect.pruning.selector import Selector
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.blocks import Block, split_frames

Budget = int | float | Sequence[int | float]


@dataclass(frozen=True)
class ImageSelection:
    """What was chosen of one image (or clip, or frame).

    Attributes:
        modality: `image` or `video`.
        row: row of the batch.
        item: number of the image or clip in its row.
        columns: columns of its N tokens in the whole conversation, [N].
        scores: importance logits, [N].
        kept: positions that stay among the N, ascending, [K].
    """

    modality: str
    row: int
    item: int
    columns: Tensor
    scores: Tensor
    kept: Tensor


@dataclass
class Selection:
    """What was chosen in one call.

    Attributes:
        images: images in order of appearance, then clips; copies of a prompt count once.
        columns: columns of the full prompt that stay, [B, S], -1 at padding; None if nothing was
            removed.
    """

    images: list[ImageSelection] = field(default_factory=list)
    columns: Tensor | None = None

    @classmethod
    def of_prompts(cls, images: Sequence[ImageSelection], copies: int, before: int) -> "Selection":
        """Return the selection of a batch that holds every prompt `copies` times in a row.

        `images` covers all rows; `before` counts the columns of the conversation before the call.
        """
        return cls(
            [
                replace(image, row=image.row // copies, columns=image.columns + before)
                for image in images
                if image.row % copies == 0
            ]
        )


def _clip_numbers(blocks: Sequence[Block], copies: int) -> list[int]:
    """Return the number of each block's image or clip in the call; copies of a prompt share it."""
    numbers: dict[tuple[str, int, int], int] = {}
    return [numbers.setdefault((b.modality, b.row // copies, b.item), len(numbers)) for b in blocks]


def frame_blocks(blocks: Sequence[Block], frames: Sequence[int] | None, copies: int) -> list[Block]:
    """Divide clips, which follow the images in `blocks`, into one block per frame.

    `frames` counts those of every clip of the call; the batch holds every prompt `copies` times.

    Raises:
        ConfigError: there are clips, but their frames are unknown.
    """
    images = [block for block in blocks if block.modality != "video"]
    clips = [block for block in blocks if block.modality == "video"]
    if not clips:
        return images
    numbers = _clip_numbers(clips, copies)
    if frames is None or len(frames) != max(numbers) + 1:
        raise ConfigError(
            "video_budget_per='frame' needs the frames of every clip, and this call does not tell "
            "them; give pixel_values_videos (or video_grid_thw), or use video_budget_per='clip'"
        )
    return images + split_frames(clips, [frames[number] for number in numbers])


def block_budgets(blocks: Sequence[Block], budget: Budget, copies: int) -> list[int | float]:
    """Return the budget of every block; the batch holds every prompt `copies` times.

    Raises:
        ConfigError: a list does not have one budget per image or clip of the call.
    """
    if isinstance(budget, int | float):
        return [budget] * len(blocks)
    numbers = _clip_numbers(blocks, copies)
    if len(budget) != max(numbers) + 1:
        raise ConfigError(
            f"budget lists {len(budget)} values for {max(numbers) + 1} images; give one for each, "
            "images before videos, or one for all"
        )
    return [budget[number] for number in numbers]


def given_selection(
    blocks: Sequence[Block], kept: Sequence[Tensor], copies: int
) -> list[ImageSelection]:
    """Return the selection that a caller made, see `attachment.keeping`.

    Args:
        blocks: blocks of the call.
        kept: positions that stay of each block of one copy, ascending, [K] each.
        copies: how often the batch holds every prompt.

    Raises:
        ConfigError: there are not as many entries as images.
    """
    places: dict[tuple[str, int], int] = {}
    keys = []
    for block in blocks:
        place = places.get((block.modality, block.row), 0)
        places[block.modality, block.row] = place + 1
        keys.append((block.modality, block.row - block.row % copies, place))
    known = dict(zip(dict.fromkeys(keys), kept, strict=False))
    if len(kept) != len(set(keys)):
        raise ConfigError(
            f"kept lists {len(kept)} images and the call has {len(set(keys))}; give the positions "
            "of each image of the call"
        )
    selections = []
    for block, key in zip(blocks, keys, strict=True):
        scores = torch.zeros(len(block), device=block.columns.device)
        scores[known[key]] = 1.0
        selections.append(
            ImageSelection(block.modality, block.row, block.item, block.columns, scores, known[key])
        )
    return selections


@torch.no_grad()
def select(
    adapter: VisualAdapter,
    selector: Selector,
    blocks: Sequence[Block],
    outputs: Mapping[str, Any],
    budgets: Sequence[int | float],
) -> list[ImageSelection]:
    """Return the best tokens of every block; `budgets` has one entry per block.

    Raises:
        ConfigError: a budget is below one token or above the tokens of its image.
    """
    tokens, mask = adapter.tokens(blocks, outputs)
    counts = [_count(budget, block) for budget, block in zip(budgets, blocks, strict=True)]
    scores = selector.to(tokens.device).score(tokens, mask)
    kept: dict[int, Tensor] = {}
    for count in set(counts):
        rows = [number for number, own in enumerate(counts) if own == count]
        real = None if mask is None else mask[rows]
        best = selector.choose(scores[rows], tokens[rows], count, real)
        kept.update(zip(rows, best, strict=True))
    return [
        ImageSelection(
            block.modality,
            block.row,
            block.item,
            block.columns,
            scores[number, : len(block)],
            kept[number],
        )
        for number, block in enumerate(blocks)
    ]


def _count(budget: int | float, block: Block) -> int:
    if isinstance(budget, int) and budget > len(block):
        raise ConfigError(
            f"budget={budget} exceeds the {len(block)} visual tokens of {block.modality} "
            f"{block.item} in row {block.row}; choose 1..{len(block)}, or a share such as 0.25, "
            "which fits images of every size"
        )
    return budget_to_tokens(budget, len(block))


def keep_mask(images: Sequence[ImageSelection], shape: Sequence[int], device: Any) -> Tensor:
    """Return a mask that is false at the columns of removed tokens, bool, [B, T]."""
    keep = torch.ones(tuple(shape), dtype=torch.bool, device=device)
    for image in images:
        keep[image.row, image.columns] = False
        keep[image.row, image.columns[image.kept]] = True
    return keep
