"""Top-K by relevance and diversity, an alternative to hard top-K that is not in the paper.

Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): tokens are kept one after another,
each the best compromise between a high score and a low similarity to those kept before. Hard top-K
keeps redundant tokens, because it looks at scores alone.

The kernels are ours. A gain never grows while tokens are added, so on a CPU a token is compared
with kept tokens only as long as it is the best candidate (lazy greedy selection, Minoux 1978); the
result is that of all N x K comparisons. On a GPU a matrix product gives all similarities at once;
there directions of tokens of 16 bits are rounded to float16, so a near tie can fall otherwise than
on a CPU.

Dimension letters: B images, N visual tokens, K that stay, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from autoselect.config.bounds import check_diversity
from autoselect.ops._native import EXTENSION, is_native
from autoselect.ops.autocast import without_autocast
from autoselect.ops.checks import check_float, check_row_budgets, check_scores, check_shape
from autoselect.ops.hard_top_k import in_image_order

LARGEST_SCORE = 8e37


def diverse_top_k_reference(
    scores: Tensor,
    tokens: Tensor,
    k: int | Tensor,
    diversity: float,
    mask: Tensor | None = None,
    width: int | None = None,
) -> Tensor:
    """Compute `diverse_top_k` in plain PyTorch, in O(N K D)."""
    budgets, columns = _check(scores, tokens, k, diversity, mask, width)
    batch, count = scores.shape
    valid = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    score = scores.detach().float().nan_to_num(-LARGEST_SCORE).clamp(-LARGEST_SCORE, LARGEST_SCORE)
    relevance = _scaled(score, valid)
    unit = centred_directions(tokens.detach().float(), valid)
    if tokens.is_cuda and tokens.dtype.itemsize == 2:
        unit = unit.half().float()  # as the kernels compare them
    gain = score.masked_fill(~valid, -torch.inf)  # of the first: scaling may make scores equal
    nearest = torch.full_like(gain, -1.0)
    kept: list[Tensor] = []
    row = torch.arange(batch, device=scores.device)
    for _ in range(columns):
        chosen = gain.argmax(dim=-1)
        kept.append(torch.where(gain[row, chosen] > -torch.inf, chosen, count))
        valid = valid.scatter(1, chosen[:, None], False)
        with without_autocast(tokens.device):
            similarity = (unit @ unit[row, chosen][:, :, None]).squeeze(-1)
        nearest = torch.fmax(nearest, similarity)  # leaves NaN out
        gain = (1 - diversity) * relevance - diversity * nearest
        gain = gain.masked_fill(~valid, -torch.inf)
    return in_image_order(torch.stack(kept, dim=1), budgets, count)


def _check(
    scores: Tensor,
    tokens: Tensor,
    k: int | Tensor,
    diversity: float,
    mask: Tensor | None,
    width: int | None,
) -> tuple[Tensor | None, int]:
    """Return budgets and columns, see `check_row_budgets`, after checking all arguments."""
    check_diversity(diversity)
    check_float("tokens", tokens, "[batch, tokens, channels]", 3)
    check_shape("scores", scores, tokens.shape[:2], tokens.device)
    check_scores(scores, mask)
    return check_row_budgets(k, scores, width)


def _scaled(scores: Tensor, valid: Tensor) -> Tensor:
    """Scale the scores of valid tokens to 0..1 within each row."""
    low = scores.masked_fill(~valid, torch.inf).amin(dim=-1, keepdim=True)
    high = scores.masked_fill(~valid, -torch.inf).amax(dim=-1, keepdim=True)
    return (scores - low) / (high - low).clamp(min=1e-12)


def centred_directions(tokens: Tensor, valid: Tensor) -> Tensor:
    """Return unit vectors of the tokens minus their image's mean, [B, N, D]; zeros at padding."""
    padding = ~valid[..., None]
    count = valid.sum(1)[:, None, None].clamp(min=1)
    mean = tokens.masked_fill(padding, 0.0).sum(1, keepdim=True) / count
    return normalize((tokens - mean).masked_fill(padding, 0.0), dim=-1)


if EXTENSION is not None:

    @torch.library.register_fake("autoselect::diverse_top_k")
    def _fake(scores, tokens, k, diversity, mask, k_rows=None):
        return scores.new_empty((scores.shape[0], k), dtype=torch.int64)


def diverse_top_k(
    scores: Tensor,
    tokens: Tensor,
    k: int | Tensor,
    diversity: float,
    mask: Tensor | None = None,
    width: int | None = None,
) -> Tensor:
    """Return the positions of `k` tokens of each row, int64, [B, K], ascending.

    Token i has the gain `(1 - diversity) * relevance_i - diversity * similarity_i`. Relevance is
    its score, scaled to 0..1 within the row; similarity is the largest cosine to a kept token,
    after subtracting the image's mean token, which all tokens share. NaN, which a token that is not
    finite makes of a similarity, does not count. The first token kept has the best score; ties go
    to the lowest position. Scores beyond `LARGEST_SCORE` count as this, and NaN, which a CPU
    refuses, as the lowest. A row with fewer than K tokens to list, because `k` or the number of its
    valid tokens is smaller, ends with -1. It has no gradient. Everything is computed in float32.

    Args:
        scores: importance logits, [B, N].
        tokens: visual tokens, [B, N, D].
        k: number of tokens to keep in 1..N, one for all rows or int64 [B].
        diversity: weight of the similarity, 0..1.
        mask: true at real tokens, [B, N].
        width: K, if `k` is a tensor; see `autoselect.ops.hard_top_k`.

    Raises:
        ConfigError: `diversity` is outside 0..1, or under the conditions of `hard_top_k`.
    """
    if not is_native(tokens.device):
        return diverse_top_k_reference(scores, tokens, k, diversity, mask, width)
    budgets, columns = _check(scores, tokens, k, diversity, mask, width)
    return torch.ops.autoselect.diverse_top_k(
        scores.detach(), tokens.detach(), columns, diversity, mask, budgets
    )
