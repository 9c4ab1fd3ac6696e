"""Encoder outputs as one matrix of visual tokens, and back, in the containers that a family uses.

Some families add image features in L later layers too (Qwen3-VL's deepstack), as further vectors of
each token. They carry the image as well as the first vector does, so removing or gating a token has
to include them. Granite 4 Vision has them alone, each with the number of its layer: its image
tokens are zeros until the first of these layers.

Dimension letters: M visual tokens of the whole batch, D width, L later layers.
"""

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


def prompt_features(output: Any) -> Any:
    """Return the features that stand first for a token: those of the prompt, if there are any."""
    if _later_layers(output)[1]:
        return output.deepstack_features[0][1]
    return output.last_hidden_state if output.pooler_output is None else output.pooler_output


def feature_matrix(output: Any, later: bool) -> Tensor:
    """Return the features of all images in the order of their placeholders, [M, D].

    Args:
        output: output of `get_image_features` or `get_video_features`.
        later: append the features for later layers to each token, [M, (1 + L) D].
    """
    rows = _rows(output.pooler_output)
    layers = _later_layers(output)[0] if later else []
    return torch.cat([rows, *(_rows(layer) for layer in layers)], dim=1) if layers else rows


def with_features(output: Any, matrix: Tensor) -> Any:
    """Return a shallow copy of an encoder's output with other features, in the same containers.

    `matrix` is [M, (1 + L) D], or [M, D] to leave later layers unchanged; M may differ.
    """
    width = output.pooler_output[0].shape[-1]
    first, *others = matrix.split(width, dim=1)
    layers, _ = _later_layers(output)
    if others:
        layers = [_like(layer, part) for layer, part in zip(layers, others, strict=True)]
    return _changed(output, _fields(output, _like(output.pooler_output, first), layers))


def with_entries(output: Any, entries: Sequence[Tensor]) -> Any:
    """Return a shallow copy of an encoder's output with one entry per image.

    `entries` holds the features of each image, [N, (1 + L) D] each; N may differ.
    """
    changed = with_features(output, torch.cat(list(entries)))
    width = output.pooler_output[0].shape[-1]
    own = [entry[:, :width] for entry in entries]
    state_too = changed.last_hidden_state is changed.pooler_output
    if not isinstance(output.pooler_output, Tensor):
        changed.pooler_output = own
    elif len({len(entry) for entry in own}) == 1:
        changed.pooler_output = torch.stack(own)
    if state_too:  # the same object, as `keep_features` reads
        changed.last_hidden_state = changed.pooler_output
    return changed


def keep_features(output: Any, kept: Tensor) -> Any:
    """Return an encoder's output with the tokens at `kept` only, int64, [K], in all layers.

    A model that is spread over devices may encode on another one than that of its prompt.
    """

    def taken(entries: Any) -> Any:
        rows = _rows(entries)
        index = kept if kept.device == rows.device else kept.to(rows.device)
        return _like(entries, rows.index_select(0, index))

    layers = [taken(layer) for layer in _later_layers(output)[0]]
    return _changed(output, _fields(output, taken(output.pooler_output), layers))


def compressed(output: Any, kept: Tensor) -> Any:
    """Return an encoder's output without the tokens that the family itself removes.

    Args:
        output: output of `get_video_features`, a list with one entry per clip.
        kept: true at tokens that stay, bool, [M].
    """
    parts = kept.split([len(entry) for entry in output.pooler_output])
    left = [entry[own] for entry, own in zip(output.pooler_output, parts, strict=True)]
    return _changed(output, {"pooler_output": left})


def without_states(output: Any) -> Any:
    """Return an encoder's output without the states of its layers, which take much memory.

    A state that is the features themselves (Llama 4) stays.
    """
    kind: Any = type(output)
    lean = kind.__new__(kind)
    for name, value in output.items():
        if name not in STATES or value is output.pooler_output:
            lean[name] = value
    return lean


def _later_layers(output: Any) -> tuple[list[Any], tuple[int, ...]]:
    """Return the features of each later layer, and the numbers of layers if they are given.

    If they are, the first layer is not among the later ones: it stands first for a token.
    """
    layers = getattr(output, "deepstack_features", None) or []
    if not layers or not isinstance(layers[0], tuple) or not isinstance(layers[0][0], int):
        return list(layers), ()
    numbers, entries = zip(*layers, strict=True)
    return list(entries[1:]), numbers


def _fields(output: Any, first: Any, layers: Sequence[Any]) -> dict[str, Any]:
    """Return the fields of an encoder's output that hold features."""
    fields = {"pooler_output": first}
    if output.last_hidden_state is output.pooler_output:
        fields["last_hidden_state"] = first
    if numbers := _later_layers(output)[1]:
        fields["deepstack_features"] = list(zip(numbers, [first, *layers], strict=True))
    elif getattr(output, "deepstack_features", None) is not None:
        fields["deepstack_features"] = list(layers)
    return fields


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
