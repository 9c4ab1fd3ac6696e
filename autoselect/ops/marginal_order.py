"""The order in which tokens are taken by maximal marginal relevance, given all likenesses.

With scores r, [B, N], and likenesses c, [B, N, N], K tokens are taken one after another, each the
one with the largest

    r_i - weight * m_i,   m_i = max of c_ij over the tokens j taken before i

and the one with the best score first (Carbonell and Goldstein, SIGIR 1998). Training with coverage
uses it, see `autoselect.method.coverage`. Selection with diversity has its own operator, which does
without most likenesses, see `autoselect.ops.diverse_top_k`.

Dimension letters: B images, N visual tokens, K tokens taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.ops._native import EXTENSION, is_native
from autoselect.ops.checks import check_count, check_float, check_scores, check_shape
from autoselect.ops.diverse_top_k import LARGEST_SCORE

MOST_TOKENS = 4096
"""Largest N that the GPU's kernel takes."""


def marginal_order_reference(
    scores: Tensor, likeness: Tensor, k: int, weight: float, mask: Tensor | None = None
) -> Tensor:
    """Compute `marginal_order` in plain PyTorch."""
    _check(scores, likeness, k, weight, mask)
    free = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    scores = scores.float().nan_to_num(-LARGEST_SCORE).clamp(-LARGEST_SCORE, LARGEST_SCORE)
    gain, nearest = scores, torch.full_like(scores, -1.0)
    row = torch.arange(len(scores), device=scores.device)
    order: list[Tensor] = []
    for _ in range(k):
        largest = gain.masked_fill(~free, -torch.inf).amax(dim=-1, keepdim=True)
        taken = (free & (gain >= largest)).int().argmax(dim=-1)
        order.append(torch.where(free[row, taken], taken, -1))
        free = free.scatter(1, taken[:, None], False)
        nearest = torch.fmax(nearest, likeness[row, taken].float())
        gain = scores - weight * nearest if weight > 0 else scores
    return torch.stack(order, dim=1)


def _check(scores: Tensor, likeness: Tensor, k: int, weight: float, mask: Tensor | None) -> None:
    check_scores(scores, mask)
    check_count(k, scores.shape[1])
    if not 0 <= weight <= LARGEST_SCORE:
        raise ConfigError(
            f"weight={weight} must lie in 0..{LARGEST_SCORE}; 0 is the order of the scores"
        )
    check_float("likeness", likeness, "[batch, tokens, tokens]", 3)
    check_shape("likeness", likeness, (*scores.shape, scores.shape[1]), scores.device)


if EXTENSION is not None:

    @torch.library.register_fake("autoselect::marginal_order")
    def _fake(scores, likeness, k, weight, mask):
        return scores.new_empty((scores.shape[0], k), dtype=torch.int64)


def marginal_order(
    scores: Tensor, likeness: Tensor, k: int, weight: float, mask: Tensor | None = None
) -> Tensor:
    """Return positions in the order in which tokens are taken, int64, [B, K].

    Ties go to the lowest position. A row with fewer than K valid tokens ends with -1. NaN among the
    likenesses does not count. It has no gradient. Everything is computed in float32.

    Args:
        scores: importance logits r, [B, N].
        likeness: c, [B, N, N].
        k: K, 1..N.
        weight: weight of the likeness, 0..`LARGEST_SCORE`, in units of the scores.
        mask: true at real tokens, [B, N].

    Raises:
        ConfigError: shapes, dtypes or devices do not fit, K or the weight is outside its range, or
            (on a CPU) a score is NaN, which counts as the lowest on a GPU.
    """
    scores, likeness = scores.detach(), likeness.detach()
    if not is_native(scores.device) or (scores.is_cuda and scores.shape[1] > MOST_TOKENS):
        return marginal_order_reference(scores, likeness, k, weight, mask)
    _check(scores, likeness, k, weight, mask)
    return torch.ops.autoselect.marginal_order(scores, likeness, k, weight, mask)
