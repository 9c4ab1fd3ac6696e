"""The tokens of one image in a prompt, before and after pruning, and the positions of those kept.

A block reaches from the first to the last visual token of an image. Some families write text
between visual tokens (marks of tiles, ends of rows); text always stays. In the pruned prompt a
block is M' slots, filled after encoding: kept visual tokens and text in their true order. Which
tokens these are is known only then, so each slot brings its own offset: the difference between its
position and that of the block's first token. It travels behind the embedding as extra channels,
in digits that bfloat16 represents exactly.

Dimension letters: M tokens of a block, N visual tokens among them, K visual tokens that stay,
M' = M - N + K slots, P coordinates of a position (3 with M-RoPE, else 1), D channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BASE, DIGITS = 128, 3
"""Offsets below 128^3; bfloat16 is exact up to 256."""


@dataclass(frozen=True)
class Block:
    """The tokens of one image before pruning.

    Attributes:
        ids: token ids, int64, [M].
        visual: true at visual tokens, [M]; the first and the last are visual.
        kept: K.
    """

    ids: Tensor
    visual: Tensor
    kept: int

    @property
    def slots(self) -> int:
        """Return M', the columns of the block in the pruned prompt."""
        return len(self.ids) - int(self.visual.sum()) + self.kept

    def packed(self) -> Tensor:
        """Return the block as one tensor, int64, [2, M + 1], as it travels with a request."""
        counts = torch.tensor([[self.kept], [0]])
        return torch.cat([counts, torch.stack([self.ids, self.visual.long()])], dim=1)

    @classmethod
    def unpacked(cls, packed: Tensor) -> "Block":
        """Return the block that `packed` was made of."""
        return cls(packed[0, 1:], packed[1, 1:].bool(), int(packed[0, 0]))

    def places(self, chosen: Tensor) -> Tensor:
        """Return the places in the block of all tokens that stay, ascending, int64, [M'].

        `chosen` has the positions of the kept visual tokens among the N, ascending, int64, [K].
        """
        device = chosen.device
        stays = ~self.visual.to(device)
        stays[self.visual.to(device).nonzero().flatten()[chosen]] = True
        return stays.nonzero().flatten()


def visual_span(embeds: Sequence[bool]) -> tuple[int, int]:
    """Return the first place of a visual token and one past the last."""
    places = [place for place, is_visual in enumerate(embeds) if is_visual]
    return places[0], places[-1] + 1


def inflated_columns(length: int, blocks: Sequence[tuple[int, Block]]) -> Tensor:
    """Return the column in the full prompt of each column of a pruned one, int64, [length].

    All slots of a block have the column of its first token.

    Args:
        length: columns of the pruned prompt.
        blocks: first slot in the pruned prompt, and block, of each image, ascending.
    """
    columns = torch.arange(length)
    for start, block in reversed(blocks):
        columns[start + block.slots :] += len(block.ids) - block.slots
        columns[start : start + block.slots] = start
    return columns


def full_prompt(ids: Sequence[int], blocks: Sequence[tuple[int, Block]]) -> list[int]:
    """Return the token ids before pruning; arguments as for `inflated_columns`."""
    full = list(ids)
    for start, block in reversed(blocks):
        full[start : start + block.slots] = block.ids.tolist()
    return full


def with_offsets(rows: Tensor, offsets: Tensor) -> Tensor:
    """Return embeddings [M', D] with their offsets [P, M'] behind them, [M', D + P * DIGITS]."""
    powers = torch.tensor([BASE**place for place in range(DIGITS)], device=offsets.device)
    digits = offsets.T[:, :, None] // powers % BASE
    return torch.cat([rows, digits.flatten(1).to(rows)], dim=1)


def without_offsets(rows: Tensor, coordinates: int) -> tuple[Tensor, Tensor]:
    """Return the embeddings [M', D] and offsets int64 [P, M'] that `with_offsets` joined."""
    width = coordinates * DIGITS
    powers = torch.tensor([BASE**place for place in range(DIGITS)], device=rows.device)
    digits = rows[:, -width:].long().view(len(rows), coordinates, DIGITS)
    return rows[:, :-width], (digits * powers).sum(-1).T
