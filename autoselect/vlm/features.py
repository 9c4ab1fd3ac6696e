"""Encoder outputs as one matrix of visual tokens, and back, in the containers that a family uses.

Some families add image features in L later layers too (Qwen3-VL's deepstack), as further vectors of
each token. They carry the image as well as the first vector does, so removing or gating a token has
to include them.

Dimension letters: M visual tokens of the whole batch, D width, L later layers.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

STATES = ("last_hidden_state", "hidden_states", "attentions")


def entry_sizes(entries: Any) -> tuple[int, ...]:
    """Return the number of visual tokens of each entry of the features."""
    if isinstance(entries, Tensor):
        return (entries.shape[1:-1].numel(),) * len(entries)
    return tuple(entry.shape[:-1].numel() for entry in entries)


def feature_matrix(output: Any, later: bool) -> Tensor:
    """Return the features of all images in the order of their placeholders, [M, D].

    Args:
        output: output of `get_image_features` or `get_video_features`.
        later: append the features for later layers to each token, [M, (1 + L) D].
    """
    rows = _rows(output.pooler_output)
    layers = getattr(output, "deepstack_features", None) or [] if later else []
    return torch.cat([rows, *(_rows(layer) for layer in layers)], dim=1) if layers else rows


def with_features(output: Any, matrix: Tensor) -> Any:
    """Return a shallow copy of an encoder's output with other features, in the same containers.

    `matrix` is [M, (1 + L) D], or [M, D] to leave later layers unchanged; M may differ.
    """
    width = output.pooler_output[0].shape[-1]
    changed = copy.copy(output)
    changed.pooler_output = _like(output.pooler_output, matrix[:, :width])
    if output.last_hidden_state is output.pooler_output:
        changed.last_hidden_state = changed.pooler_output
    if matrix.shape[1] > width:
        parts = matrix[:, width:].split(width, dim=1)
        pairs = zip(output.deepstack_features, parts, strict=True)
        changed.deepstack_features = [_like(layer, part) for layer, part in pairs]
    return changed


def with_entries(output: Any, entries: Sequence[Tensor]) -> Any:
    """Return a shallow copy of an encoder's output with one entry per image.

    `entries` holds the features of each image, [N, (1 + L) D] each; N may differ.
    """
    changed = with_features(output, torch.cat(list(entries)))
    width = output.pooler_output[0].shape[-1]
    own = [entry[:, :width] for entry in entries]
    if not isinstance(output.pooler_output, Tensor):
        changed.pooler_output = own
    elif len({len(entry) for entry in own}) == 1:
        changed.pooler_output = torch.stack(own)
    return changed


def keep_features(output: Any, kept: Tensor) -> Any:
    """Return an encoder's output with the tokens at `kept` only, int64, [K], in all layers."""
    entries = output.pooler_output
    fields = {"pooler_output": _like(entries, _rows(entries).index_select(0, kept))}
    if output.last_hidden_state is entries:
        fields["last_hidden_state"] = fields["pooler_output"]
    if (layers := getattr(output, "deepstack_features", None)) is not None:
        fields["deepstack_features"] = [
            _like(layer, _rows(layer).index_select(0, kept)) for layer in layers
        ]
    return _changed(output, fields)


def without_states(output: Any) -> Any:
    """Return an encoder's output without the states of its layers, which take much memory."""
    kind: Any = type(output)
    lean = kind.__new__(kind)
    for name, value in output.items():
        if name not in STATES:
            lean[name] = value
    return lean


def _changed(output: Any, fields: Mapping[str, Any]) -> Any:
    """Return a shallow copy of a model's output with other fields.

    `copy.copy` would check all fields again, which takes longer than the choice of the tokens.
    """
    kind: Any = type(output)
    changed = kind.__new__(kind)
    vars(changed).update(vars(output))
    for name, value in {**output, **fields}.items():
        changed[name] = value
    return changed


def _rows(entries: Any) -> Tensor:
    """Return entries of any shape as rows, [M, D]; copied only if they are several tensors."""
    if isinstance(entries, Tensor):
        return entries.reshape(-1, entries.shape[-1])
    if len(entries) == 1:
        return entries[0].reshape(-1, entries[0].shape[-1])
    if all(entry.ndim == 2 for entry in entries):
        return torch.cat(list(entries))
    return torch.cat([entry.reshape(-1, entry.shape[-1]) for entry in entries])


def _like(container: Any, features: Tensor) -> Any:
    """Return one list entry if a family uses lists, else a batch of one."""
    return features[None] if isinstance(container, Tensor) else [features]
