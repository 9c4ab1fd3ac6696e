"""Hard top-K: the positions of the K largest scores, in image order.

Source: AutoSelect (arXiv 2603.07135), inference. Ours: ties go to the lowest position, so that the
result depends neither on the device nor on the algorithm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoselect.ops._native import EXTENSION, differentiable_once, is_native
from autoselect.ops.checks import check_float, check_row_budgets, check_scores, check_shape


def hard_top_k_reference(
    scores: Tensor, k: int | Tensor, mask: Tensor | None = None, width: int | None = None
) -> Tensor:
    """Compute `hard_top_k` in plain PyTorch: sort stably, cut at k, sort by position.

    NaN (refused on a CPU) ranks below every number, and padding below NaN.
    """
    check_scores(scores, mask)
    budgets, columns = check_row_budgets(k, scores, width)
    is_nan = scores.detach().isnan()
    numbers = scores.detach().masked_fill(is_nan, -torch.inf)
    order = torch.argsort(numbers, dim=-1, descending=True, stable=True)
    below = is_nan.to(torch.uint8)
    if mask is not None:
        below = below.masked_fill(~mask, 2)
    kept = order.gather(1, torch.argsort(below.gather(1, order), dim=-1, stable=True))[:, :columns]
    if mask is not None:
        kept = kept.masked_fill(~mask.gather(1, kept), scores.shape[1])
    return in_image_order(kept, budgets, scores.shape[1])


def in_image_order(kept: Tensor, budgets: Tensor | None, num_tokens: int) -> Tensor:
    """Return positions [B, K], best first, in ascending order, and -1 for nothing at the end.

    Args:
        kept: the positions; `num_tokens` stands for nothing.
        budgets: how many of each row count, [B]; all of them if None.
        num_tokens: N.
    """
    if budgets is not None:
        places = torch.arange(kept.shape[1], device=kept.device)
        kept = kept.masked_fill(places >= budgets.clamp(min=1)[:, None], num_tokens)
    positions = kept.sort(dim=-1).values
    return positions.masked_fill(positions == num_tokens, -1)


def select_tokens_reference(
    tokens: Tensor,
    scores: Tensor,
    k: int | Tensor,
    mask: Tensor | None = None,
    width: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `select_tokens` in plain PyTorch."""
    check_float("tokens", tokens, "[batch, tokens, channels]", 3)
    check_shape("scores", scores, tokens.shape[:2], tokens.device)
    indices = hard_top_k_reference(scores, k, mask, width)
    return tokens_at(tokens, indices), indices


def tokens_at(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return the tokens at `indices` [B, K], as [B, K, D]; zeros for an index of -1."""
    where = indices.clamp(min=0)[..., None].expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, where).masked_fill((indices < 0)[..., None], 0.0)


if EXTENSION is not None:

    @torch.library.register_fake("autoselect::hard_top_k")
    def _fake(scores, k, mask, k_rows=None):
        return scores.new_empty((scores.shape[0], k), dtype=torch.int64)

    @torch.library.register_fake("autoselect::select_tokens")
    def _fake_select(tokens, scores, k, mask, k_rows=None):
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
        return backward(grad, indices, ctx.num_tokens), *(None,) * 4

    torch.library.register_autograd(
        "autoselect::select_tokens", _select_backward, setup_context=_setup_select
    )
    differentiable_once("select_tokens_backward")


def hard_top_k(
    scores: Tensor, k: int | Tensor, mask: Tensor | None = None, width: int | None = None
) -> Tensor:
    """Return the positions of the `k` largest scores of each row, int64, [B, K], ascending.

    Ties go to the lowest position. A row with fewer than K tokens to list, because `k` or the
    number of its valid tokens is smaller, ends with -1. It has no gradient.

    Args:
        scores: importance logits, [B, N].
        k: token budget in 1..N, one for all rows or int64 [B].
        mask: true at valid tokens, bool, [B, N]; all valid when None.
        width: K, if `k` is a tensor: at least its largest value, which is the default on a CPU.
            On a GPU and under torch.compile it must be given, because reading it would wait for
            the device.

    Raises:
        ConfigError: shape, dtype or device do not fit, `k` is outside 1..N, `width` is missing or
            too small, or (on a CPU) a score is NaN; on a GPU NaN ranks below every number, and
            budgets outside 1..K count as the nearest of them.
    """
    if not is_native(scores.device):
        return hard_top_k_reference(scores, k, mask, width)
    check_scores(scores, mask)
    budgets, columns = check_row_budgets(k, scores, width)
    return torch.ops.autoselect.hard_top_k(scores.detach(), columns, mask, budgets)


def select_tokens(
    tokens: Tensor,
    scores: Tensor,
    k: int | Tensor,
    mask: Tensor | None = None,
    width: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the tokens with the `k` largest scores: (kept [B, K, D], positions [B, K]).

    Differentiable in the tokens. If a position is -1 (see `hard_top_k`), the kept token is zero.
    Only kept tokens are copied, also from a strided view whose channels lie together.

    Args:
        tokens: visual tokens, [B, N, D].
        scores: importance logits, [B, N].
        k: token budget in 1..N, one for all rows or int64 [B].
        mask: true at valid tokens, bool, [B, N]; all valid when None.
        width: K, if `k` is a tensor; see `hard_top_k`.

    Raises:
        ConfigError: under the conditions of `hard_top_k`.
    """
    if not is_native(tokens.device):
        return select_tokens_reference(tokens, scores, k, mask, width)
    check_float("tokens", tokens, "[batch, tokens, channels]", 3)
    check_shape("scores", scores, tokens.shape[:2], tokens.device)
    check_scores(scores, mask)
    budgets, columns = check_row_budgets(k, scores, width)
    return torch.ops.autoselect.select_tokens(tokens, scores.detach(), columns, mask, budgets)
