"""Position ids of a full prompt, as the untouched model would number it.

Most families count columns. Families with three rows of positions (M-RoPE) place an image on a grid
by their own `get_rope_index`.

Dimension letters: B rows, T columns of the call, L columns of the conversation before it.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoselect.vlm.cache_layout import CacheLayout
from autoselect.vlm.held import Held
from autoselect.vlm.host import HostPrompt, send


class Positions:
    """Numbers the tokens of a call whose caller gives no position ids.

    Attributes:
        on_grid: whether positions have three rows (M-RoPE).
        grid_arguments: names of the arguments of the model's `get_rope_index`.
        told_by: argument of a call without which the model does not place images on a grid.

    Args:
        base: the model without its head; it is not kept alive.
        first: position of the first token.
    """

    def __init__(self, base: Any, first: int) -> None:
        self._base = Held(base)
        self.first = first
        self.on_grid = hasattr(base, "get_rope_index")
        self.grid_arguments: tuple[str, ...] = ()
        if self.on_grid:
            self.grid_arguments = tuple(inspect.signature(base.get_rope_index).parameters)
        types = "mm_token_type_ids"
        self.told_by = types if types in self.grid_arguments else "attention_mask"

    def of_call(
        self, inputs: Mapping[str, Any], past: CacheLayout, past_mask: Tensor | None
    ) -> Tensor:
        """Return the positions of the columns of a call of `forward`, [B, T] or [rows, B, T].

        Args:
            inputs: arguments of `forward`; per-token ones hold the new columns only.
            past: what the cache holds.
            past_mask: attention mask of the conversation so far, [B, L]; None if nothing is hidden.
        """
        ids = inputs["input_ids"]
        columns = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        if not self.on_grid:
            return columns + past.full_length + self.first
        start = self.start(past, past_mask)
        if inputs.get(self.told_by) is not None:
            return self.grid_positions(inputs) + start
        return (columns + start).expand(3, -1, -1)

    @staticmethod
    def start(past: CacheLayout, past_mask: Tensor | None) -> Tensor | int:
        """Return the position of the first new token on the grid, [B, 1], or one number for all."""
        seen: Tensor | int = past.full_length
        if past_mask is not None:
            seen = past_mask.sum(dim=1, keepdim=True)
        return seen if past.rope_deltas is None else seen + past.rope_deltas

    def grid_positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return positions by the model's own `get_rope_index`, counted from 0, [rows, B, T]."""
        arguments = {n: inputs[n] for n in self.grid_arguments if inputs.get(n) is not None}
        arguments.update(_of_sound_and_time(inputs, self.grid_arguments))
        return self._base.module.get_rope_index(**arguments)[0]

    def rope_deltas(
        self,
        position_ids: Tensor,
        prompt: HostPrompt,
        past: CacheLayout,
        past_mask: Tensor | None,
    ) -> Tensor:
        """Return next position minus number of real tokens, [B, 1], as families with M-RoPE do.

        Args:
            position_ids: positions in the call, [B, T] or [rows, B, T]; the last three rows are the
                grid.
            prompt: the new columns of the call.
            past: what the cache held before the call.
            past_mask: attention mask of the conversation so far, [B, L]; None if nothing is hidden.
        """
        grid = position_ids[-3:] if position_ids.ndim == 3 else position_ids[None]
        new: Tensor | int = prompt.real.shape[1]
        if not prompt.real.all():
            hidden, new = send([~prompt.real, prompt.real.sum(axis=1, keepdims=True)], grid.device)
            grid = grid.masked_fill(hidden != 0, -1)
        last = grid.amax(dim=(0, 2))[:, None]
        if past_mask is None:
            return last + (1 - past.full_length - new)
        return last + 1 - past_mask.sum(dim=1, keepdim=True) - new


def _of_sound_and_time(inputs: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of an omni model's `get_rope_index` that `forward` names otherwise."""
    lengths = inputs.get("audio_feature_lengths")
    if (mask := inputs.get("feature_attention_mask")) is not None:
        lengths = mask.sum(dim=1)
    named = {"audio_seqlens": lengths, "second_per_grids": inputs.get("video_second_per_grid")}
    return {name: value for name, value in named.items() if name in known and value is not None}
