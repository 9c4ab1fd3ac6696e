"""Integers between host and device, each way in one copy.

Reading waits for the device, so a call reads once, before its encoder runs. Sending does not wait:
the numbers go through page-locked memory.

Dimension letters: B rows, T new columns of a call, L columns of the conversation before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoselect.config import ConfigError


def read(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Copy integer tensors to the host with one wait; each keeps its shape."""
    flat = torch.cat([tensor.reshape(-1).long() for tensor in tensors])
    values = flat.cpu().numpy()
    found, begin = [], 0
    for tensor in tensors:
        end = begin + tensor.numel()
        found.append(values[begin:end].reshape(tensor.shape))
        begin = end
    return found


def send(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copy arrays to a device as int64 without waiting; each keeps its shape."""
    flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays], dtype=np.int64))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    parts = flat.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


class Sent:
    """Arrays of a plan that is used again: copied to each device once.

    They are tensors that autograd may save, whatever mode the first call ran in.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays
        self._tensors: dict[torch.device, list[Tensor]] = {}

    def on(self, device: torch.device) -> list[Tensor]:
        """Return the arrays on a device as int64, each in its shape; they must not be changed."""
        found = self._tensors.get(device)
        if found is None:
            with torch.inference_mode(False):
                found = self._tensors[device] = send(self._arrays, device)
        return found


@dataclass(frozen=True)
class HostPrompt:
    """What the host knows of a call.

    Attributes:
        ids: token ids of the new columns, [B, T].
        real: false at columns that the attention mask hides, [B, T].
        hides_before: whether the mask hides columns of the conversation before the call.
        frames: frames of every clip; None if they were not asked for or are unknown.
    """

    ids: np.ndarray
    real: np.ndarray
    hides_before: bool = False
    frames: list[int] | None = None

    @classmethod
    def of(
        cls,
        call: Mapping[str, Any],
        length: int | None = None,
        frames: Tensor | list[int] | None = None,
    ) -> "HostPrompt":
        """Read the last `length` columns of a call (all by default); waits for the device once.

        Args:
            call: arguments of `forward`; the attention mask may span the whole conversation, and is
                left out if it is not of shape [B, L + T].
            length: T.
            frames: frames of every clip; a tensor is read along.

        Raises:
            ConfigError: input_ids are missing, or embeddings are given in their place.
        """
        ids, mask = call.get("input_ids"), call.get("attention_mask")
        if ids is None or call.get("inputs_embeds") is not None:
            raise ConfigError(
                "inputs_embeds do not show where images are, which the image token of input_ids "
                "tells; give input_ids with the pixels, not inputs_embeds"
            )
        ids = ids if length is None else ids[:, -length:]
        rows, new = len(ids), ids.shape[1]
        if mask is not None:
            fits = isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) == rows
            mask = mask if fits and mask.shape[1] >= new else None
        given = [tensor for tensor in (ids, mask, frames) if isinstance(tensor, Tensor)]
        found = iter(read(given))
        own = next(found)
        whole: np.ndarray = np.ones(own.shape, dtype=bool) if mask is None else next(found) != 0
        before = whole.shape[1] - new
        return cls(
            own,
            whole[:, before:],
            before > 0 and not whole[:, :before].all(),
            next(found).tolist() if isinstance(frames, Tensor) else frames,
        )

    @property
    def padded_on_the_right(self) -> bool:
        return not bool(self.real[:, -1].all())
