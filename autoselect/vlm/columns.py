"""Taking columns out of a batch of prompts: which stay, and what they were.

Rows may lose different numbers of columns, so the rest is padded again, on the side where the
prompts are padded. Padding that is no longer needed goes too.

Dimension letters: B rows, T columns of the full prompt, S columns that stay.
"""

import torch
from torch import Tensor

from autoselect.config import ConfigError

PADDING = -1


def remaining_columns(keep: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Columns of the full prompt that stay, [B, S], -1 at padding.

    Args:
        keep: false at removed tokens and at padding, [B, T].
        attention_mask: of the full prompt, [B, T], for the side of the padding; None without any.
    """
    counts = keep.sum(dim=1)
    size = int(counts.max())
    on_the_right = attention_mask is not None and bool((attention_mask[:, -1] == 0).any())
    order = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
    places = torch.arange(size, device=keep.device)
    columns = order.masked_fill(places >= counts[:, None], PADDING)
    if on_the_right:
        return columns
    shifted = places - (size - counts)[:, None]
    return columns.gather(1, shifted.clamp(min=0)).masked_fill(shifted < 0, PADDING)


def take_columns(values: Tensor, columns: Tensor, fill: int) -> Tensor:
    """Columns of `values` [..., B, T] as [..., B, S], `fill` at padding.

    Args:
        values: per token, [..., B, T]; B may be 1 where it holds for all rows.
        columns: of `remaining_columns`, [B, S].
        fill: value of padding.
    """
    index = columns.clamp(min=0)
    values = values.expand(*values.shape[:-2], len(columns), values.shape[-1])
    taken = values.gather(-1, index.expand(*values.shape[:-1], index.shape[1]))
    return taken.masked_fill(columns == PADDING, fill)


def take_logit_positions(positions: Tensor, columns: Tensor) -> Tensor:
    """Places among `columns` of the positions of the full prompt at which logits are wanted.

    Args:
        positions: `logits_to_keep` as a tensor, [P].
        columns: of `remaining_columns`, [B, S].

    Raises:
        ConfigError: a position was removed, or rows differ.
    """
    found = columns[:, None, :] == positions.to(columns.device)[None, :, None]
    places = found.to(torch.uint8).argmax(dim=-1)
    if not bool(found.any(-1).all()) or not bool((places == places[:1]).all()):
        raise ConfigError(
            "logits_to_keep names columns that are removed, or that differ between the rows of "
            "the batch after pruning; give a number of last columns, or one row at a time"
        )
    return places[0]
