"""Hard top-K: the positions of the K largest scores, in image order.

Source: AutoSelect (arXiv 2603.07135), inference. Ours: ties go to the lowest position, so that the
result depends neither on the device nor on the algorithm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoselect.ops._native import EXTENSION, differentiable_once, is_native
from autoselect.ops.checks import check_count, check_float, check_scores, check_shape


def hard_top_k_reference(scores: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """Compute `hard_top_k` in plain PyTorch: sort stably, cut at k, sort by position.

    NaN (refused on a CPU) ranks below every number, and padding below NaN.
    """
    check_scores(scores, mask)
    k = check_count(k, scores.shape[1])
    num_tokens = scores.shape[1]
    is_nan = scores.detach().isnan()
    numbers = scores.detach().masked_fill(is_nan, -torch.inf)
    order = torch.argsort(numbers, dim=-1, descending=True, stable=True)
    below = is_nan.to(torch.uint8)
    if mask is not None:
        below = below.masked_fill(~mask, 2)
    kept = order.gather(1, torch.argsort(below.gather(1, order), dim=-1, stable=True))[:, :k]
    if mask is None:
        return kept.sort(dim=-1).values
    is_valid = mask.gather(1, kept)
    positions = kept.masked_fill(~is_valid, num_tokens).sort(dim=-1).values
    return positions.masked_fill(positions == num_tokens, -1)


def select_tokens_reference(
    tokens: Tensor, scores: Tensor, k: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `select_tokens` in plain PyTorch."""
    check_float("tokens", tokens, "[batch, tokens, channels]", 3)
    check_shape("scores", scores, tokens.shape[:2], tokens.device)
    indices = hard_top_k_reference(scores, k, mask)
    return tokens_at(tokens, indices), indices


def tokens_at(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return the tokens at `indices` [B, K], as [B, K, D]; zeros for an index of -1."""
    where = indices.clamp(min=0)[..., None].expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, where).masked_fill((indices < 0)[..., None], 0.0)


if EXTENSION is not None:

    @torch.library.register_fake("autoselect::hard_top_k")
    def _fake(scores, k, mask):
        return scores.new_empty((scores.shape[0], k), dtype=torch.int64)

    @torch.library.register_fake("autoselect::select_tokens")
    def _fake_select(tokens, scores, k, mask):
        kept = tokens.new_empty((tokens.shape[0], k, tokens.shape[2]))
        return kept, tokens.new_empty((tokens.shape[0], k), dtype=torch.int64)

    @torch.library.register_fake("autoselect::select_tokens_backward")
    def _fake_select_backward(grad, indices, num_tokens):
        return grad.new_empty((grad.shape[0], num_tokens, grad.shape[2]))

    def _setup_select(ctx, inputs, output):
        indices = output[1]
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(indices)
        ctx.num_tokens = inputs[0].shape[1]

    def _select_backward(ctx, grad, _grad_indices):
        (indices,) = ctx.saved_tensors
        backward = torch.ops.autoselect.select_tokens_backward
        return backward(grad, indices, ctx.num_tokens), None, None, None

    torch.library.register_autograd(
        "autoselect::select_tokens", _select_backward, setup_context=_setup_select
    )
    differentiable_once("select_tokens_backward")


def hard_top_k(scores: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
    """Return the positions of the `k` largest scores of each row, int64, [B, K], ascending.

    Ties go to the lowest position. A row with fewer than `k` valid tokens lists all of them and
    then -1. It has no gradient.

    Args:
        scores: importance logits, [B, N].
        k: token budget in 1..N.
        mask: true at valid tokens, bool, [B, N]; all valid when None.

    Raises:
        ConfigError: shape, dtype or device do not fit, `k` is outside 1..N, or (on a CPU) a score
            is NaN; on a GPU NaN ranks below every number.
    """
    if not is_native(scores.device):
        return hard_top_k_reference(scores, k, mask)
    check_scores(scores, mask)
    k = check_count(k, scores.shape[1])
    return torch.ops.autoselect.hard_top_k(scores.detach(), k, mask)


def select_tokens(
    tokens: Tensor, scores: Tensor, k: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the tokens with the `k` largest scores: (kept [B, K, D], positions [B, K]).

    Differentiable in the tokens. If a position is -1 (see `hard_top_k`), the kept token is zero.

    Args:
        tokens: visual tokens, [B, N, D].
        scores: importance logits, [B, N].
        k: token budget in 1..N.
        mask: true at valid tokens, bool, [B, N]; all valid when None.

    Raises:
        ConfigError: under the conditions of `hard_top_k`.
    """
    if not is_native(tokens.device):
        return select_tokens_reference(tokens, scores, k, mask)
    check_float("tokens", tokens, "[batch, tokens, channels]", 3)
    check_shape("scores", scores, tokens.shape[:2], tokens.device)
    check_scores(scores, mask)
    k = check_count(k, scores.shape[1])
    return torch.ops.autoselect.select_tokens(tokens, scores.detach(), k, mask)
