"""Taking columns out of a batch of prompts: which stay, and what they were.

Rows may lose different numbers of columns, so the remaining ones are padded again, on the side on
which the prompts were padded. Padding that became unnecessary is removed.

Dimension letters: B rows, T columns of the full prompt, S columns that stay.
"""

import torch
from torch import Tensor

from autoselect.config import ConfigError

PADDING = -1


def remaining_columns(keep: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the columns of the full prompt that stay, [B, S], -1 at padding.

    Args:
        keep: false at removed tokens and at padding, [B, T].
        attention_mask: mask of the full prompt, [B, T]; tells the padded side. None without
            padding.
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
    """Take `columns` [B, S] of `values` [..., B or 1, T] as [..., B, S], with `fill` at padding."""
    index = columns.clamp(min=0)
    values = values.expand(*values.shape[:-2], len(columns), values.shape[-1])
    taken = values.gather(-1, index.expand(*values.shape[:-1], index.shape[1]))
    return taken.masked_fill(columns == PADDING, fill)


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
