"""Which columns of the conversation a KV cache holds; stored as an attribute of the cache.

After pruning, a cache is shorter than the conversation, but users and `generate` count columns of
the whole conversation. Because the layout travels with the cache, a copy of the cache (a shared
prefix, for example) can be continued too.

Dimension letters: B rows, S cached columns, T columns of the conversation so far.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.vlm.columns import PADDING, take_columns

ATTRIBUTE = "autoselect_layout"


@dataclass(frozen=True)
class CacheLayout:
    """What a pruned cache holds.

    Attributes:
        columns: column of the conversation of each cached column, -1 at padding, [B, S].
        full_length: T.
        padded: whether there is padding.
        rope_deltas: position of a text token minus its number among real tokens, [B, 1]; None
            unless the family uses M-RoPE.
        images_end: column of the conversation after its last visual token.
    """

    columns: Tensor
    full_length: int
    padded: bool
    rope_deltas: Tensor | None = None
    images_end: int = 0

    @property
    def is_pruned(self) -> bool:
        """Return True if the cache holds other columns than the conversation has."""
        return self.padded or self.columns.shape[1] != self.full_length

    @classmethod
    def unpruned(cls, rows: int, length: int, device: torch.device) -> "CacheLayout":
        columns = torch.arange(length, device=device).expand(rows, -1)
        return cls(columns, length, padded=False)

    def cut_to(self, length: int) -> "CacheLayout":
        """Return the layout after the cache was cropped to `length` columns.

        Raises:
            ConfigError: the crop removed more than text at the end of the conversation.
        """
        kept, gone = self.columns[:, :length], self.columns[:, length:]
        full_length = self.full_length - gone.shape[1]
        others = (kept >= full_length).any() | ((gone != PADDING) & (gone < full_length)).any()
        if full_length < self.images_end or bool(others):
            raise ConfigError(
                f"past_key_values cropped from {self.columns.shape[1]} to {length} columns lack "
                "more than the last text of the conversation; crop no further than to the end of "
                "its last image (with padding on the right: of its prompt), or start a new cache"
            )
        return replace(self, columns=kept, full_length=full_length)

    def grown_to(self, length: int) -> "CacheLayout":
        """Return the layout after decoding steps that left `length` columns in the cache."""
        extra = length - self.columns.shape[1]
        if extra == 0:
            return self
        new = torch.arange(extra, device=self.columns.device) + self.full_length
        columns = torch.cat([self.columns, new.expand(len(self.columns), -1)], dim=1)
        return replace(self, columns=columns, full_length=self.full_length + extra)

    def followed_by(
        self, columns: Tensor, is_image: Tensor, rope_deltas: Tensor | None
    ) -> "CacheLayout":
        """Return the layout after appending the remaining columns of a call.

        Args:
            columns: columns of the call that stay, -1 at padding, [B, S'].
            is_image: true at visual tokens among all columns of the call, [B, T'].
            rope_deltas: next position minus the number of real tokens, [B, 1], or None.
        """
        moved = columns.where(columns == PADDING, columns + self.full_length)
        padded = self.padded or bool((columns == PADDING).any())
        return CacheLayout(
            torch.cat([self.columns, moved], dim=1),
            self.full_length + is_image.shape[1],
            padded,
            rope_deltas,
            self.full_length + int(is_image.any(dim=0).nonzero().max()) + 1,
        )

    def cached_mask(self, attention_mask: Tensor | None) -> Tensor:
        """Return the attention mask of the cached columns, [B, S].

        `attention_mask` is that of the conversation, [B, T or more]; None if nothing is padded.
        """
        if attention_mask is None:
            return (self.columns != PADDING).long()
        return take_columns(attention_mask[:, : self.full_length], self.columns, 0)

    def mask(self, attention_mask: Tensor | None, new: int) -> Tensor | None:
        """Return the attention mask of cached and `new` columns, [B, S + new]; None if all is seen.

        `attention_mask` is that of the conversation with the new columns, [B, T + new], or None.
        """
        if attention_mask is None and not self.padded:
            return None
        cached = self.cached_mask(attention_mask)
        if attention_mask is None:
            behind = cached.new_ones(len(cached), new)
        else:
            behind = attention_mask[:, self.full_length :]
        return torch.cat([cached, behind.to(cached.dtype)], dim=1)

    def token_types(self, token_type_ids: Tensor, new: int) -> Tensor:
        """Return token types of cached and `new` columns, [B, S + new]; zeros at the cached ones.

        A mask that lets the tokens of an image see each other looks types up by place in the cache.
        The last columns of `token_type_ids` are the new ones.
        """
        behind = token_type_ids[:, -new:]
        cached = behind.new_zeros(len(behind), self.columns.shape[1])
        return torch.cat([cached, behind], dim=1)


def cached_length(cache: Any) -> int:
    """Return the number of columns in a cache, 0 without one."""
    return 0 if cache is None else int(cache.get_seq_length())


def layout_of(cache: Any) -> CacheLayout | None:
    """Return the layout of a cache filled by a pruned prompt, brought up to date; else None.

    If the cache was cropped, its layout is cropped too; if it was emptied, the layout is removed.
    """
    layout = getattr(cache, ATTRIBUTE, None)
    if layout is None:
        return None
    length = cached_length(cache)
    if length == 0:
        delattr(cache, ATTRIBUTE)
        return None
    if length < layout.columns.shape[1]:
        layout = layout.cut_to(length)
        write_layout(cache, layout)
    return layout.grown_to(length)


def write_layout(cache: Any, layout: CacheLayout) -> None:
    setattr(cache, ATTRIBUTE, layout)
