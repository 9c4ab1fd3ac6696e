"""The differentiable pass through the frozen language model, and its loss on the answers.

Dimension letters: B rows, T text tokens, M visual tokens of the whole batch, D width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batch import IGNORED_LABEL, TrainBatch, attention_mask


def answer_loss(
    vlm: FrozenVLM,
    batch: TrainBatch,
    visual: Tensor,
    recompute: bool = False,
    log_weights: Tensor | None = None,
) -> Tensor:
    """Next-token loss summed over answer tokens; logits exist at answer positions only.

    Args:
        vlm: the frozen backbone.
        batch: text with placeholders, [B, T].
        visual: visual tokens in order of appearance, [M, D]; M placeholders in `batch`.
        recompute: keep no activations of the language model; compute them again in the backward.
        log_weights: added to the attention logits of each visual token as a key, [M]; minus
            infinity would remove it, 0 leaves it as it is.

    Returns:
        The sum, float32, 0-d, with gradient to `visual` and `log_weights`.
    """
    hidden = text_hidden(vlm, batch, visual, recompute, log_weights)
    answers = batch.labels != IGNORED_LABEL
    logits = vlm.model.get_output_embeddings()(hidden[answers])
    return F.cross_entropy(logits.float(), batch.labels[answers], reduction="sum")


def text_hidden(
    vlm: FrozenVLM,
    batch: TrainBatch,
    visual: Tensor,
    recompute: bool = False,
    log_weights: Tensor | None = None,
) -> Tensor:
    """Last hidden states of the language model, [B, T, D]."""
    with torch.no_grad():
        embeds = vlm.model.get_input_embeddings()(batch.input_ids)
    places = batch.input_ids == vlm.image_token_id
    embeds = embeds.masked_scatter(places[..., None], visual.to(embeds.dtype))
    arguments: dict[str, Any] = {"position_ids": position_ids(vlm, batch), "use_cache": False}
    images = image_numbers(places) if vlm.family.images_see_themselves else None
    if log_weights is not None:
        bias = embeds.new_zeros(places.shape).masked_scatter(places, log_weights.to(embeds.dtype))
        mask = attention_mask(batch.segments, embeds.dtype, images)
        arguments["attention_mask"] = mask + bias[:, None, None, :]
    elif images is not None or bool((batch.segments > 0).any()):
        arguments["attention_mask"] = attention_mask(batch.segments, embeds.dtype, images)
    else:
        arguments["attention_mask"] = (batch.segments != -2).long()

    def run(inputs: Tensor) -> Tensor:
        return vlm.model.model(inputs_embeds=inputs, **arguments).last_hidden_state

    if recompute:
        return checkpoint(run, embeds, use_reentrant=False)
    return run(embeds)


def image_numbers(places: Tensor) -> Tensor:
    """Number of the run of placeholders that a token belongs to, -1 for text, [B, T].

    Args:
        places: true at placeholders, [B, T].
    """
    starts = places & ~F.pad(places[:, :-1], (1, 0))
    return torch.where(places, starts.cumsum(dim=1) - 1, -1)


def position_ids(vlm: FrozenVLM, batch: TrainBatch) -> Tensor:
    """Positions of a batch as the family counts them, [B, T] or [3, B, T].

    On a grid (M-RoPE) an image takes fewer positions than tokens; every round starts where the
    prefix ends, as it does in `batch.position_ids`.
    """
    grid = batch.pixels.get("image_grid_thw")
    if grid is None or not vlm.positions.on_grid:
        return batch.position_ids + vlm.family.first_position
    types = (batch.input_ids == vlm.image_token_id).int()
    real = batch.segments != -2
    on_grid = vlm.positions.grid_positions(
        {
            "input_ids": batch.input_ids,
            "attention_mask": real.long(),
            "mm_token_type_ids": types,
            "image_grid_thw": grid,
        }
    )
    prefix = batch.segments == -1
    shared = prefix.any(dim=1)
    ends = on_grid.amax(dim=0).masked_fill(~prefix, -1).amax(dim=1) + 1
    rounds = batch.position_ids + (ends - prefix.sum(dim=1))[:, None]
    by_round = shared[:, None] & ~prefix
    return torch.where(by_round, rounds.expand(3, -1, -1), on_grid)
