"""Top-K by relevance and diversity, an alternative to hard top-K that is not in the paper.

Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): tokens are kept one after another,
each the best compromise between a high score and a low similarity to those kept before. Hard top-K
keeps redundant tokens, because it looks at scores alone.

Dimension letters: B images, N visual tokens, K that stay, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from autoselect.config import ConfigError


def check_diversity(diversity: float) -> None:
    if not 0 <= diversity <= 1:
        raise ConfigError(
            f"diversity={diversity} must lie in 0..1: 0 is the score alone, 1 ignores it after the "
            "first token"
        )


def diverse_top_k(
    scores: Tensor, tokens: Tensor, k: int, diversity: float, mask: Tensor | None = None
) -> Tensor:
    """Return the positions of `k` tokens of each row, int64, [B, K], ascending, in O(N K D).

    Token i has the gain `(1 - diversity) * relevance_i - diversity * similarity_i`. Relevance is
    its score, scaled to 0..1 within the row; similarity is the largest cosine to a kept token,
    after subtracting the image's mean token, which all tokens share. The first token kept has the
    best score; ties go to the lowest position. A row with fewer than `k` valid tokens lists all of
    them and then -1.

    Args:
        scores: importance logits, [B, N].
        tokens: visual tokens, [B, N, D].
        k: number of tokens to keep, 1..N.
        diversity: weight of the similarity, 0..1.
        mask: true at real tokens, [B, N].

    Raises:
        ConfigError: `diversity` is outside 0..1, or `k` outside 1..N.
    """
    check_diversity(diversity)
    batch, count = scores.shape
    if not 1 <= k <= count:
        raise ConfigError(f"k={k} must lie in 1..{count}, the number of tokens")
    valid = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    relevance = _scaled(scores.float(), valid)
    unit = _centred_directions(tokens.float(), valid)
    gain = relevance.masked_fill(~valid, -torch.inf)
    nearest = torch.full_like(gain, -1.0)
    kept: list[Tensor] = []
    row = torch.arange(batch, device=scores.device)
    for _ in range(k):
        chosen = gain.argmax(dim=-1)
        kept.append(torch.where(gain[row, chosen] > -torch.inf, chosen, count))
        valid = valid.scatter(1, chosen[:, None], False)
        nearest = torch.maximum(nearest, (unit @ unit[row, chosen][:, :, None]).squeeze(-1))
        gain = (1 - diversity) * relevance - diversity * nearest
        gain = gain.masked_fill(~valid, -torch.inf)
    positions = torch.stack(kept, dim=1).sort(dim=1).values
    return positions.masked_fill(positions == count, -1)


def _scaled(scores: Tensor, valid: Tensor) -> Tensor:
    """Scale the scores of valid tokens to 0..1 within each row."""
    low = scores.masked_fill(~valid, torch.inf).amin(dim=-1, keepdim=True)
    high = scores.masked_fill(~valid, -torch.inf).amax(dim=-1, keepdim=True)
    return (scores - low) / (high - low).clamp(min=1e-12)


def _centred_directions(tokens: Tensor, valid: Tensor) -> Tensor:
    """Return unit vectors of the tokens minus their image's mean, [B, N, D]."""
    weights = valid[..., None].to(tokens.dtype)
    mean = (tokens * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
    return normalize(tokens - mean, dim=-1)
