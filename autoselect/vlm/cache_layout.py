"""Which columns of the conversation a KV cache holds.

After pruning, a cache is shorter than the conversation, but users and `generate` count columns of
the whole conversation. `pruned_cache` keeps the layout of a cache true.

Dimension letters: B rows, S cached columns, T columns of the conversation so far, P columns of a
layout's own tensor.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.vlm.columns import PADDING, PrunePlan, take_columns
from autoselect.vlm.release import CACHE


@dataclass(frozen=True)
class CacheLayout:
    """What a pruned cache holds: the columns of its prompt, and text that followed it.

    Attributes:
        columns: column of the conversation of each cached column up to the prompt's last one, -1 at
            padding, [B, P].
        full_length: T.
        padded: whether there is padding.
        rope_deltas: position of a text token minus its number among real tokens, [B, 1]; None
            unless the family uses M-RoPE.
        images_end: column of the conversation after its last visual token.
        grown: S - P, columns behind the prompt; they are the last ones of the conversation.
    """

    columns: Tensor
    full_length: int
    padded: bool
    rope_deltas: Tensor | None = None
    images_end: int = 0
    grown: int = 0

    @property
    def cached(self) -> int:
        """Return S."""
        return self.columns.shape[1] + self.grown

    @property
    def is_pruned(self) -> bool:
        """Return True if the cache holds other columns than the conversation has."""
        return self.padded or self.cached != self.full_length

    @classmethod
    def unpruned(cls, rows: int, length: int, device: torch.device) -> "CacheLayout":
        if length == 0:
            return cls(torch.empty(rows, 0, dtype=torch.long, device=device), 0, padded=False)
        columns = torch.arange(length, device=device).expand(rows, -1)
        return cls(columns, length, padded=False)

    def cut_to(self, length: int) -> "CacheLayout":
        """Return the layout after the cache was cropped to `length` columns.

        Raises:
            ConfigError: the crop removed more than text at the end of the conversation.
        """
        size = self.columns.shape[1]
        if length >= size:
            return self.grown_to(length)
        kept, gone = self.columns[:, :length], self.columns[:, length:]
        full_length = self.full_length - self.grown - gone.shape[1]
        others = (kept >= full_length).any() | ((gone != PADDING) & (gone < full_length)).any()
        if full_length < self.images_end or bool(others):
            raise ConfigError(
                f"{CACHE}: cropped from {self.cached} to {length} columns, it lacks "
                "more than the last text of the conversation; crop no further than to the end of "
                "its last image (with padding on the right: of its prompt), or start a new cache"
            )
        return replace(self, columns=kept, full_length=full_length, grown=0)

    def grown_to(self, length: int) -> "CacheLayout":
        """Return the layout when the cache has `length` columns, at least P."""
        extra = length - self.cached
        if extra == 0:
            return self
        return replace(self, full_length=self.full_length + extra, grown=self.grown + extra)

    def of_rows(self, rows: Tensor) -> "CacheLayout":
        """Return the layout of a cache that holds `rows` of this one's, given by number, [B']."""
        rows = rows.to(self.columns.device)
        deltas = None if self.rope_deltas is None else self.rope_deltas[rows]
        return replace(self, columns=self.columns[rows], rope_deltas=deltas)

    def check_rows(self, rows: int) -> None:
        """Check that a call has as many rows as the cache.

        Raises:
            ConfigError: it has not.
        """
        if rows != len(self.columns):
            raise ConfigError(
                f"{CACHE}: it holds {len(self.columns)} pruned rows and the call has {rows}; go "
                "on with the same rows, or repeat those of the cache first with "
                f"{CACHE}.batch_repeat_interleave"
            )

    def check_mask(self, attention_mask: Any, new: int) -> None:
        """Check that an attention mask covers the conversation with `new` columns behind it.

        Raises:
            ConfigError: it does not, or is not of shape [B, columns].
        """
        wanted = self.full_length + new
        if attention_mask is None:
            return
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
            raise ConfigError(
                f"attention_mask is not of shape [rows, columns], but the cache ({CACHE}) holds a "
                f"pruned prompt; give one of {wanted} columns, or none"
            )
        if attention_mask.shape[1] != wanted:
            raise ConfigError(
                f"attention_mask has {attention_mask.shape[1]} columns; give one of the whole "
                f"conversation with its removed tokens, {wanted} columns, or none"
            )

    def followed_by(
        self, columns: Tensor, plan: PrunePlan, rope_deltas: Tensor | None
    ) -> "CacheLayout":
        """Return the layout after appending the remaining columns of a call.

        Args:
            columns: columns of the call that stay, -1 at padding, [B, S'].
            plan: how the call became shorter.
            rope_deltas: next position minus the number of real tokens, [B, 1], or None.
        """
        before = self.full_length
        if before:
            moved = columns.where(columns == PADDING, columns + before)
            grown = torch.arange(before - self.grown, before, device=columns.device)
            columns = torch.cat([self.columns, grown.expand(len(columns), -1), moved], dim=1)
        return CacheLayout(
            columns,
            before + plan.prompt.ids.shape[1],
            self.padded or plan.padded,
            rope_deltas,
            before + plan.images_end,
        )

    def cached_mask(self, attention_mask: Tensor | None) -> Tensor:
        """Return the attention mask of the cached columns, [B, S].

        `attention_mask` is that of the conversation, [B, T or more]; None if nothing is padded.
        """
        if attention_mask is None:
            prompt = (self.columns != PADDING).long()
            return torch.nn.functional.pad(prompt, (0, self.grown), value=1)
        begin = self.full_length - self.grown
        prompt = take_columns(attention_mask[:, :begin], self.columns)
        return torch.cat([prompt, attention_mask[:, begin : self.full_length]], dim=1)

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
        cached = behind.new_zeros(len(behind), self.cached)
        return torch.cat([cached, behind], dim=1)
