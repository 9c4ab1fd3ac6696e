"""The differentiable pass through the frozen language model, and its loss on the answers.

Dimension letters: B rows, T text tokens, M visual tokens of the whole batch, D width, L later
layers with features of their own, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.features import with_features
from autoselect.vlm.recompute import run_recomputed
from autoselect.vlm.text.batch import IGNORED_LABEL, TrainBatch, attention_mask
from autoselect.vlm.text.placeholders import check_counts


def answer_loss(
    vlm: FrozenVLM,
    batch: TrainBatch,
    visual: Tensor,
    recompute: bool = False,
    log_weights: Tensor | None = None,
    output: Any = None,
) -> Tensor:
    """Next-token loss summed over answer tokens; logits exist at answer positions only.

    Args:
        vlm: the frozen backbone.
        batch: text with placeholders, [B, T].
        visual: visual tokens in order of appearance, [M, D]; M placeholders in `batch`. With what
            later layers add, [M, (1 + L) D], see `VisualTokens.channels`.
        recompute: keep only the inputs of the language model's layers; the backward pass computes
            each layer again.
        log_weights: added to the attention logits of each visual token as a key, [M]; minus
            infinity would remove it, 0 leaves it as it is.
        output: of the encoder; needed by families with more than features in the prompt.

    Returns:
        The sum, float32, 0-d, with gradient to `visual` and `log_weights`.

    Raises:
        ConfigError: visual tokens are not as many as their placeholders.
    """
    hidden = text_hidden(vlm, batch, visual, recompute, log_weights, output)
    answers = batch.labels != IGNORED_LABEL
    logits = vlm.model.get_output_embeddings()(hidden[answers])
    return F.cross_entropy(logits.float(), batch.labels[answers], reduction="sum")


def text_hidden(
    vlm: FrozenVLM,
    batch: TrainBatch,
    visual: Tensor,
    recompute: bool = False,
    log_weights: Tensor | None = None,
    output: Any = None,
) -> Tensor:
    """Last hidden states of the language model, [B, T, D]; as `answer_loss` otherwise."""
    places = batch.input_ids == vlm.image_token_id
    check_counts(vlm.name, len(visual), int(places.sum()))
    arguments = {
        "position_ids": position_ids(vlm, batch),
        "attention_mask": _mask(vlm, batch, places, log_weights),
        "use_cache": False,
    }
    if vlm.family.beyond_features and len(visual):
        assert output is not None, "this family's own forward needs the encoder's output"

        def run(tokens: Tensor) -> Tensor:
            outputs = {"image": with_features(output, tokens.to(vlm.dtype))}
            call = {**arguments, "input_ids": batch.input_ids, "mm_encoder_outputs": outputs}
            return vlm.model.model(**call).last_hidden_state

        inputs = visual
    else:
        with torch.no_grad():
            embeds = vlm.model.get_input_embeddings()(batch.input_ids)

        def run(tokens: Tensor) -> Tensor:
            return vlm.model.model(inputs_embeds=tokens, **arguments).last_hidden_state

        inputs = embeds.masked_scatter(places[..., None], visual.to(embeds.dtype))
    if log_weights is not None and log_weights.requires_grad and not inputs.requires_grad:
        # Attention kernels on a GPU expect a gradient of the queries where the mask has one.
        inputs = inputs.detach().requires_grad_()
    if recompute:
        return run_recomputed(run, inputs, vlm.model.get_decoder())
    return run(inputs)


def _mask(vlm: FrozenVLM, batch: TrainBatch, places: Tensor, log_weights: Tensor | None) -> Any:
    """What every token sees: [B, T] where plain causal order says it, else [B, 1, T, T].

    The stock model cannot narrow the latter to the window of a layer, so that is done here; where
    layers differ the masks come by kind of layer.

    Args:
        vlm: the frozen backbone.
        batch: see above.
        places: true at placeholders, [B, T].
        log_weights: see `answer_loss`.
    """
    real = (batch.segments != -2).long()
    images = image_numbers(places) if vlm.family.images_see_themselves else None
    if log_weights is None and images is None and not bool((batch.segments > 0).any()):
        return real
    mask = attention_mask(batch.segments, vlm.dtype, images)
    if log_weights is not None:
        bias = mask.new_zeros(places.shape).masked_scatter(places, log_weights.to(mask.dtype))
        mask = mask + bias[:, None, None, :]
    if vlm.family.convolutions:
        return {"full_attention": mask, "conv": real}
    config = vlm.model.config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window is None or (kinds and "sliding_attention" not in kinds):
        return mask
    near = within_window(mask, batch.position_ids, window)
    return {"full_attention": mask, "sliding_attention": near} if kinds else near


def within_window(mask: Tensor, positions: Tensor, window: int) -> Tensor:
    """An additive mask [B, 1, T, T] without keys that are `window` or more positions back.

    Args:
        mask: of attention without a window, [B, 1, T, T].
        positions: of the tokens in their own round, [B, T].
        window: positions that a token sees, itself included.
    """
    far = positions[:, :, None] - positions[:, None, :] >= window
    return mask.masked_fill(far[:, None], torch.finfo(mask.dtype).min)


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
