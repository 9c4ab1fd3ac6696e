"""The differentiable pass through the frozen language model, and its loss on the answers.

Dimension letters: B rows, T text tokens, M visual tokens of the whole batch, D width, L later
layers with features of their own (deepstack), V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.batches.batch import TrainBatch, attention_mask
from autoselect.vlm.batches.rows import PADDING_SEGMENT, PREFIX_SEGMENT
from autoselect.vlm.families import MIXING, SLIDING
from autoselect.vlm.features import feature_matrix, with_features
from autoselect.vlm.head import head_logits
from autoselect.vlm.host import send
from autoselect.vlm.recompute import run_recomputed
from autoselect.vlm.text.tokens import IGNORED_LABEL


def answer_loss(
    adapter: VisualAdapter,
    batch: TrainBatch,
    outputs: Mapping[str, Any],
    recompute: bool = False,
    log_weights: Tensor | None = None,
) -> Tensor:
    """Return the next-token loss summed over answer tokens, float32, 0-d.

    Gradient flows to the features in `outputs` and to `log_weights`. Logits are computed at answer
    positions only.

    Args:
        adapter: adapter of the frozen model.
        batch: text with M placeholders, [B, T].
        outputs: encoder outputs with M features, see `VisualAdapter.replace`.
        recompute: keep only the inputs of the language model's layers; the backward pass computes
            each layer again.
        log_weights: added to the attention logits of each visual token as a key, [M]; minus
            infinity would remove it, 0 leaves it as it is.
    """
    hidden = text_hidden(adapter, batch, outputs, recompute, log_weights)
    known = batch.on_host.labels.numpy().reshape(-1)
    answers = np.flatnonzero(known != IGNORED_LABEL)
    places, wanted = send([answers, known[answers]], hidden.device)
    logits = head_logits(adapter.model, hidden.flatten(0, 1).index_select(0, places))
    return F.cross_entropy(logits.float(), wanted, reduction="sum")


def text_hidden(
    adapter: VisualAdapter,
    batch: TrainBatch,
    outputs: Mapping[str, Any],
    recompute: bool = False,
    log_weights: Tensor | None = None,
) -> Tensor:
    """Return the language model's last hidden states, [B, T, D]; arguments as `answer_loss`."""
    call = {
        "input_ids": batch.input_ids,
        "position_ids": position_ids(adapter, batch),
        "attention_mask": _mask(adapter, batch, log_weights),
        "use_cache": False,
    }
    output = outputs["image"]
    features = feature_matrix(output, later=True)

    def run(features: Tensor) -> Tensor:
        replaced = with_features(output, features.to(adapter.model.dtype))
        return _last_hidden(adapter, {**call, "mm_encoder_outputs": {"image": replaced}})

    if log_weights is not None and log_weights.requires_grad and not features.requires_grad:
        # If the mask has a gradient, attention kernels on a GPU expect one of the queries too.
        features = features.detach().requires_grad_()
    if recompute:
        return run_recomputed(run, features, adapter.model.get_decoder())
    return run(features)


def _last_hidden(adapter: VisualAdapter, call: Mapping[str, Any]) -> Tensor:
    """Return the last hidden states of a call, [B, T, D].

    A model without a base of its own (Llama 4) returns logits, so its language model is watched.
    """
    if adapter.base is not adapter.model:
        return adapter.base(**call).last_hidden_state
    seen: list[Tensor] = []
    decoder = adapter.model.get_decoder()
    with getattr(decoder, "model", decoder).register_forward_hook(
        lambda _module, _given, output: seen.append(output.last_hidden_state)
    ):
        adapter.model(**call, logits_to_keep=1)
    return seen[-1]


def _mask(adapter: VisualAdapter, batch: TrainBatch, log_weights: Tensor | None) -> Any:
    """Return which keys each token sees: [B, T] if causal order is enough, else [B, 1, T, T].

    Padding is on the right, so no token sees it in causal order, and nothing has to be hidden:
    attention kernels without a mask serve. The stock model cannot narrow a mask to the window of a
    layer, so that is done here; if layers differ, there is a mask per kind of layer.
    """
    places = batch.input_ids == adapter.image_token_id
    images = image_numbers(places) if adapter.family.images_see_themselves else None
    if log_weights is None and images is None and not batch.has_rounds:
        return torch.ones_like(batch.segments)
    if adapter.family.padding_mask_only:
        raise ConfigError(
            f"model_type={adapter.model.config.model_type}: its attention takes no mask that "
            "removes tokens, so what the model answers without them cannot be measured in one "
            "pass; leave --removal-images of `autoselect doctor` out"
        )
    mask = attention_mask(batch.segments, adapter.model.dtype, images)
    if log_weights is not None:
        bias = mask.new_zeros(places.shape).masked_scatter(places, log_weights.to(mask.dtype))
        mask = mask + bias[:, None, None, :]
    config = adapter.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    window = getattr(config, "sliding_window", None)
    slides = not kinds or any(kind in SLIDING for kind in kinds)
    near = mask
    if slides and window is not None:
        near = within_window(mask, batch.position_ids, window)
    if not kinds:
        return near
    per_kind = {
        "full_attention": mask,
        **dict.fromkeys(kinds, mask),
        **dict.fromkeys(SLIDING, near),
    }
    if adapter.family.convolutions:
        real = (batch.segments != PADDING_SEGMENT).long()
        return {**per_kind, **dict.fromkeys(MIXING, real)}
    return mask if near is mask else per_kind


def within_window(mask: Tensor, positions: Tensor, window: int) -> Tensor:
    """Mask keys that are `window` or more positions back, in an additive mask [B, 1, T, T].

    `positions` [B, T] count the tokens of each round; a token sees `window` of them, itself
    included.
    """
    far = positions[:, :, None] - positions[:, None, :] >= window
    return mask.masked_fill(far[:, None], torch.finfo(mask.dtype).min)


def image_numbers(places: Tensor) -> Tensor:
    """Return the number of each placeholder's run, -1 for text, [B, T]; `places` is [B, T] too."""
    starts = places & ~F.pad(places[:, :-1], (1, 0))
    return torch.where(places, starts.cumsum(dim=1) - 1, -1)


def position_ids(adapter: VisualAdapter, batch: TrainBatch) -> Tensor:
    """Return the positions of a batch as the family counts them, [B, T] or [3, B, T].

    With M-RoPE an image takes fewer positions than tokens. Every round starts at the end of the
    prefix, as in `batch.position_ids`.
    """
    if not any(name in adapter.positions.grid_arguments for name in batch.pixels):
        return batch.position_ids + adapter.family.first_position
    types = (batch.input_ids == adapter.image_token_id).int()
    real = batch.segments != PADDING_SEGMENT
    on_grid = adapter.positions.grid_positions(
        {
            **batch.pixels,
            "input_ids": batch.input_ids,
            "attention_mask": real.long(),
            "mm_token_type_ids": types,
        }
    )
    prefix = batch.segments == PREFIX_SEGMENT
    shared = prefix.any(dim=1)
    ends = on_grid.amax(dim=0).masked_fill(~prefix, -1).amax(dim=1) + 1
    rounds = batch.position_ids + (ends - prefix.sum(dim=1))[:, None]
    by_round = shared[:, None] & ~prefix
    return torch.where(by_round, rounds.expand(3, -1, -1), on_grid)
