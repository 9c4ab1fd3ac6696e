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
    arguments: dict[str, Any] = {"position_ids": batch.position_ids, "use_cache": False}
    if log_weights is not None:
        bias = embeds.new_zeros(places.shape).masked_scatter(places, log_weights.to(embeds.dtype))
        mask = attention_mask(batch.segments, embeds.dtype)
        arguments["attention_mask"] = mask + bias[:, None, None, :]
    elif bool((batch.segments > 0).any()):
        arguments["attention_mask"] = attention_mask(batch.segments, embeds.dtype)
    else:
        arguments["attention_mask"] = (batch.segments != -2).long()

    def run(inputs: Tensor) -> Tensor:
        return vlm.model.model(inputs_embeds=inputs, **arguments).last_hidden_state

    if recompute:
        return checkpoint(run, embeds, use_reentrant=False)
    return run(embeds)
