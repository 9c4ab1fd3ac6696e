"""Taking columns out of a batch of prompts: which stay, and what they were.

Rows may lose different numbers of columns, so the remaining ones are padded again, on the side on
which the prompts were padded. Padding that became unnecessary is removed.

The host knows everything but which visual tokens were chosen: how many columns each row keeps,
where its padding is, and (if the placeholders of each image stand side by side) where kept tokens
go.

Dimension letters: B rows, T columns of the full prompt, S columns that stay, M visual tokens of all
images, K kept ones of all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.vlm.blocks import Block
from autoselect.vlm.host import HostPrompt, Sent

PADDING = -1


@dataclass(frozen=True)
class PrunePlan:
    """How a call becomes shorter, in host integers.

    Attributes:
        prompt: the full prompt.
        blocks: places of the images.
        counts: number of kept tokens of each block.
        texts: columns that stay, 0 at kept tokens and -1 at padding, [B, S].
        slots: places among the B S of `texts` that kept tokens take, block after block, [K].
        visual: columns of the visual tokens, block after block, [M].
        starts: place in `visual` of the first token of each kept token's block, [K].
        in_order: whether the slots of an image's kept tokens are the same whichever stay: its
            placeholders stand side by side.
    """

    prompt: HostPrompt
    blocks: Sequence[Block]
    counts: Sequence[int]
    texts: np.ndarray
    slots: np.ndarray
    visual: np.ndarray
    starts: np.ndarray
    in_order: bool

    @classmethod
    def of(cls, prompt: HostPrompt, blocks: Sequence[Block], counts: Sequence[int]) -> "PrunePlan":
        """Plan a call that keeps `counts` tokens of each block."""
        lengths = np.array([len(block) for block in blocks])
        kept = np.asarray(counts)
        rows = np.array([block.row for block in blocks])
        visual = np.concatenate([block.columns for block in blocks])
        ends = np.cumsum(lengths)
        starts = np.repeat(ends - lengths, kept)
        within = np.arange(len(starts)) - np.repeat(np.cumsum(kept) - kept, kept)
        stays = prompt.real.copy()
        stays[np.repeat(rows, lengths), visual] = False
        # Until it is known which tokens of an image stay, its first ones stand for them.
        own, places = np.repeat(rows, kept), visual[starts + within]
        stays[own, places] = True
        in_row = stays.sum(axis=1)
        size = int(in_row.max())
        order = stays.cumsum(axis=1) - 1
        if not prompt.padded_on_the_right:
            order += (size - in_row)[:, None]
        texts = np.full((len(stays), size), PADDING)
        row, column = np.nonzero(stays)
        texts[row, order[row, column]] = column
        return cls(
            prompt,
            blocks,
            counts,
            texts,
            own * size + order[own, places],
            visual,
            starts,
            bool((visual[ends - 1] - visual[ends - lengths] < lengths).all()),
        )

    @cached_property
    def images_end(self) -> int:
        """Return the column after the last visual token of any row."""
        return int(self.visual.max()) + 1

    @cached_property
    def padded(self) -> bool:
        return bool((self.texts == PADDING).any())

    @cached_property
    def parts(self) -> list[tuple[str, slice, int]]:
        """Return each modality with its slice of the K kept tokens, and its first of the M."""
        names = [block.modality for block in self.blocks]
        found = []
        for name in dict.fromkeys(names):
            first, end = names.index(name), len(names) - names[::-1].index(name)
            before = sum(self.counts[:first])
            own = slice(before, before + sum(self.counts[first:end]))
            found.append((name, own, sum(map(len, self.blocks[:first]))))
        return found

    def by_modality(self, tokens: Tensor) -> dict[str, Tensor]:
        """Split places among the tokens of all blocks, [K], into places by modality."""
        if len(self.parts) == 1:
            return {self.parts[0][0]: tokens}
        return {name: tokens[own] - base if base else tokens[own] for name, own, base in self.parts}

    @cached_property
    def _sent(self) -> Sent:
        texts = self.texts.reshape(-1)
        if not self.in_order and self.prompt.padded_on_the_right:
            texts = np.where(texts == PADDING, np.iinfo(np.int64).max, texts)
        return Sent([texts, self.slots, self.visual, self.starts, self.texts == PADDING])

    def spread(self, kept: Tensor) -> "Columns":
        """Return the columns that stay, given the kept tokens.

        Args:
            kept: positions of the kept tokens among those of their block, ascending, block after
                block, int64, [K].
        """
        texts, slots, visual, starts, padding = self._sent.on(kept.device)
        index = kept if len(self.blocks) == 1 else kept + starts
        columns = texts.scatter(0, slots, visual.index_select(0, index)).view(self.texts.shape)
        if not self.in_order:
            columns = columns.sort(dim=1).values
        if not self.padded:
            return Columns(columns, columns, None, index)
        hidden = padding != 0
        safe = columns.masked_fill(hidden, 0)
        return Columns(safe.masked_fill(hidden, PADDING), safe, hidden, index)


@dataclass(frozen=True)
class Columns:
    """Which columns of a batch of prompts stay.

    Attributes:
        numbers: columns of the full prompt, [B, S], -1 at padding.
        index: the same with 0 at padding, [B, S].
        hidden: true at padding, [B, S]; None without padding.
        tokens: places of the kept tokens among the visual tokens of all images, [K].
    """

    numbers: Tensor
    index: Tensor
    hidden: Tensor | None
    tokens: Tensor

    @property
    def size(self) -> int:
        """Return S."""
        return self.index.shape[1]

    def take(self, values: Tensor, fill: int) -> Tensor:
        """Take the columns of `values` [..., B or 1, T] as [..., B, S], with `fill` at padding."""
        rows, size = self.index.shape
        if values.ndim == 2 and len(values) == rows:
            taken = values.gather(1, self.index)
        else:
            values = values.expand(*values.shape[:-2], rows, values.shape[-1])
            taken = values.gather(-1, self.index.expand(*values.shape[:-1], size))
        return taken if self.hidden is None else taken.masked_fill(self.hidden, fill)

    def positions(self, first: int) -> Tensor:
        """Return their positions if column 0 has `first` and all columns count, [B, S]."""
        positions = self.index + first
        return positions if self.hidden is None else positions.masked_fill(self.hidden, 0)

    def mask(self, given: Tensor | None) -> Tensor:
        """Return the attention mask of the columns that stay, [B, S], with the dtype of `given`."""
        dtype = torch.long if given is None else given.dtype
        if self.hidden is None:
            return torch.ones_like(self.index, dtype=dtype)
        return (~self.hidden).to(dtype)


def remaining_columns(keep: Tensor) -> Tensor:
    """Return the columns at which `keep` [B, T] is true, [B, S], -1 at padding on the left."""
    counts = keep.sum(dim=1)
    size = int(counts.max())
    order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
    shifted = torch.arange(size, device=keep.device) - (size - counts)[:, None]
    return order.gather(1, shifted.clamp(min=0)).masked_fill(shifted < 0, PADDING)


def take_columns(values: Tensor, columns: Tensor) -> Tensor:
    """Take `columns` [B, S] of `values` [..., B or 1, T] as [..., B, S], with 0 at padding."""
    index = columns.clamp(min=0)
    values = values.expand(*values.shape[:-2], len(columns), values.shape[-1])
    taken = values.gather(-1, index.expand(*values.shape[:-1], index.shape[1]))
    return taken.masked_fill(columns == PADDING, 0)


def take_logit_positions(positions: Tensor, columns: Tensor) -> Tensor:
    """Return the places among `columns` [B, S] of the full prompt's `positions` [P].

    Raises:
        ConfigError: a position was removed, or its place differs between rows.
    """
    found = columns[:, None, :] == positions.to(columns.device)[None, :, None]
    places = found.to(torch.uint8).argmax(dim=-1)
    if not bool(found.any(-1).all()) or not bool((places == places[:1]).all()):
        raise ConfigError(
            "logits_to_keep names columns that are removed, or that differ between the rows of "
            "the batch after pruning; give a number of last columns, or one row at a time"
        )
    return places[0]
