"""Selection of the visual tokens of each image of a call: scores, budgets, hard top-K.

Dimension letters: I images of the call, N visual tokens of one image, K tokens of all images that
stay, B rows, S columns that stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.pruning.budget import (
    Budget,
    OnSmallImage,
    is_smaller,
    kept_tokens,
    listed_budgets,
    read_budget,
)
from autoselect.pruning.plans import CallPlan, clip_numbers
from autoselect.pruning.selector import Selector
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.blocks import Block
from autoselect.vlm.columns import PADDING
from autoselect.vlm.host import HostPrompt, read, send
from autoselect.vlm.sites import SITES


@dataclass(frozen=True)
class ImageSelection:
    """What was chosen of one image (or clip, or frame).

    Attributes:
        modality: `image` or `video`.
        row: row of the batch.
        item: number of the image or clip in its row.
        columns: columns of its N tokens in the whole conversation, [N].
        scores: importance logits, [N].
        kept: positions that stay among the N, ascending, their number is the image's budget.
    """

    modality: str
    row: int
    item: int
    columns: Tensor
    scores: Tensor
    kept: Tensor


@dataclass(frozen=True)
class Chosen:
    """What stays of the images of a call.

    Attributes:
        blocks: the I images.
        counts: number of tokens of each image that stay.
        kept: their positions among those of their image, ascending, image after image, int64, [K].
        scores: importance logits, [I, N]; None if the caller chose.
    """

    blocks: Sequence[Block]
    counts: tuple[int, ...]
    kept: Tensor
    scores: Tensor | None

    @property
    def removes_nothing(self) -> bool:
        return sum(self.counts) == sum(map(len, self.blocks))

    def images(self) -> list[ImageSelection]:
        found = []
        for number, (block, own) in enumerate(
            zip(self.blocks, torch.split(self.kept, list(self.counts)), strict=True)
        ):
            if self.scores is None:
                scores = torch.zeros(len(block), device=own.device).index_fill(0, own, 1.0)
            else:
                scores = self.scores[number, : len(block)]
            columns = torch.from_numpy(block.columns).to(own.device)
            found.append(
                ImageSelection(block.modality, block.row, block.item, columns, scores, own)
            )
        return found

    def unhidden(self, prompt: HostPrompt) -> "Chosen":
        """Return the choice without tokens that the attention mask hides; reads `kept`."""
        rows = np.repeat([b.row for b in self.blocks], [len(b) for b in self.blocks])
        real = prompt.real[rows, np.concatenate([block.columns for block in self.blocks])]
        starts = np.cumsum([0, *map(len, self.blocks)])[:-1]
        stays = real[np.repeat(starts, self.counts) + read([self.kept])[0]]
        owners = np.repeat(np.arange(len(self.blocks)), self.counts)[stays]
        (places,) = send([np.flatnonzero(stays)], self.kept.device)
        counts = np.bincount(owners, minlength=len(self.blocks)).tolist()
        return replace(self, counts=tuple(counts), kept=self.kept.index_select(0, places))


class Selection:
    """What was chosen in one call; worked out when it is read.

    Args:
        chosen: the choice of the batch, which holds every prompt `copies` times in a row.
        copies: how often.
        before: number of columns of the conversation before the call.
        budgets: budget of each image.
        columns: columns of the call that stay, [B, S], -1 at padding; None if all stay.
    """

    def __init__(
        self,
        chosen: Chosen,
        copies: int,
        before: int,
        budgets: Sequence[int | float],
        columns: Tensor | None = None,
    ) -> None:
        self._chosen = chosen
        self._copies = copies
        self._before = before
        self._budgets = budgets
        self._columns = columns

    @cached_property
    def images(self) -> list[ImageSelection]:
        """Images in order of appearance, then clips; copies of a prompt count once."""
        return [
            replace(image, row=image.row // self._copies, columns=image.columns + self._before)
            for image in self._chosen.images()
            if image.row % self._copies == 0
        ]

    @cached_property
    def columns(self) -> Tensor | None:
        """Columns of the full prompt that stay, [B, S], -1 at padding; None if all stay."""
        if self._columns is None:
            return None
        return self._columns.where(self._columns == PADDING, self._columns + self._before)

    @property
    def smaller_images(self) -> int:
        """Number of images that have fewer tokens than their budget, and keep all of them."""
        return sum(
            is_smaller(budget, len(block))
            for budget, block in zip(self._budgets, self._chosen.blocks, strict=True)
            if block.row % self._copies == 0
        )


def block_budgets(
    blocks: Sequence[Block], budget: Budget, copies: int, on_small_image: OnSmallImage
) -> list[int | float]:
    """Return the budget of every block; the batch holds every prompt `copies` times.

    Raises:
        ConfigError: a budget is not a number, a list does not have one per image or clip of the
            call, or `on_small_image` is `error` and an image has fewer tokens than its budget.
    """
    listed = listed_budgets(budget)
    if listed is None:
        found = [read_budget(budget, len(block)) for block in blocks]
    else:
        numbers = clip_numbers(blocks, copies)
        if len(listed) != max(numbers) + 1:
            raise ConfigError(
                f"budget lists {len(listed)} values for {max(numbers) + 1} images; give one for "
                "each, images before videos, or one for all"
            )
        found = [read_budget(listed[n], len(b)) for n, b in zip(numbers, blocks, strict=True)]
    if on_small_image == "error":
        for number, (own, block) in enumerate(zip(found, blocks, strict=True)):
            if is_smaller(own, len(block)):
                raise ConfigError(
                    f"budget={own} exceeds the {len(block)} visual tokens of image {number} of the "
                    "call; give a smaller budget or a share, or attach with on_small_image='keep'"
                )
    return found


def given_selection(blocks: Sequence[Block], kept: Sequence[Tensor], copies: int) -> Chosen:
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
    own = [known[key] for key in keys]
    return Chosen(blocks, tuple(map(len, own)), torch.cat(own), None)


def check_width(adapter: VisualAdapter, selector: Selector) -> None:
    """Check that a selector was trained for tokens of a model's width, at a site that it has.

    Raises:
        ConfigError: the width differs, or the model does not have the site.
    """
    name = type(adapter.model).__name__
    selector.check_width(SITES[selector.site].width(adapter), f"{name} (site {selector.site})")


@torch.no_grad()
def select(
    adapter: VisualAdapter,
    selector: Selector,
    plan: CallPlan,
    outputs: Mapping[str, Any],
    budgets: Sequence[int | float],
) -> Chosen:
    """Return the best tokens of every block; `outputs` hold what the Scorer reads.

    `budgets` has one entry per block. An image with fewer tokens than its budget keeps all.

    Raises:
        ConfigError: a budget is below one token, or a share outside 0..1.
    """
    tokens, mask = plan.rows.take(adapter.features(outputs))
    lengths = [len(block) for block in plan.blocks]
    counts = tuple(map(kept_tokens, budgets, lengths))
    scores = selector.score(tokens, mask)
    if min(counts) == max(counts):
        kept = selector.choose(scores, tokens, counts[0], mask, lengths).view(-1)
    else:
        padded = selector.choose(scores, tokens, counts, mask, lengths)
        own = np.asarray(counts)
        within = np.arange(own.sum()) - np.repeat(np.cumsum(own) - own, own)
        places = np.repeat(np.arange(len(own)) * padded.shape[1], own) + within
        kept = padded.view(-1).index_select(0, *send([places], padded.device))
    return Chosen(plan.blocks, counts, kept, scores)
