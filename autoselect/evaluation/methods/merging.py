"""Baselines that merge tokens instead of only dropping them."""

import torch
from torch import Tensor

from autoselect.evaluation.methods.context import Kept, SelectionContext
from autoselect.evaluation.methods.coverage import grid_positions
from autoselect.ops.hard_top_k import tokens_at

DOMINANT_SHARE = 54 / 64


def average_pooling(context: SelectionContext, budget: int) -> Kept:
    """Average the tokens nearest each of K evenly spaced points; keep the mean at that point."""
    batch, count, _ = context.tokens.shape
    device = context.tokens.device
    anchors = grid_positions(context.grid, count, budget).to(device)
    columns = context.grid[1] if context.grid is not None else count
    index = torch.arange(count, device=device)
    place = torch.stack([index // columns, index % columns], dim=-1).float()
    owner = torch.cdist(place, place[anchors]).argmin(dim=-1)
    weights = torch.nn.functional.one_hot(owner, budget).float()
    return Kept(_weighted_mean(context, weights.expand(batch, -1, -1)), anchors.expand(batch, -1))


def visionzip(context: SelectionContext, budget: int) -> Kept:
    """Keep tokens with much CLS attention, merge the others (VisionZip, arXiv 2412.04467).

    Of 64 tokens 54 are dominant, and the same share at every budget. The contextual ones start at
    evenly spaced remaining tokens; every other remaining token is averaged into the most similar.
    """
    batch, count, _ = context.tokens.shape
    dominant = min(budget, max(1, round(budget * DOMINANT_SHARE)))
    contextual = budget - dominant
    order = context.salience().argsort(dim=-1, descending=True, stable=True)
    kept = order[:, :dominant]
    if contextual == 0:
        return context.at(kept)
    rest = order[:, dominant:].sort(dim=-1).values
    remaining = rest.shape[1]
    steps = ((torch.arange(contextual) + 0.5) * remaining / contextual).long()
    targets = rest[:, steps.to(rest.device)]
    unit = context.unit_tokens()
    similarity = unit @ tokens_at(unit, targets).transpose(1, 2)
    owner = similarity.argmax(dim=-1)
    owner.scatter_(1, targets, torch.arange(contextual, device=owner.device).expand(batch, -1))
    weights = torch.nn.functional.one_hot(owner, contextual).float()
    weights.scatter_(1, kept[..., None].expand(-1, -1, contextual), 0.0)
    merged = _weighted_mean(context, weights)
    positions = torch.cat([kept, targets], dim=1)
    tokens = torch.cat([tokens_at(context.tokens, kept), merged], dim=1)
    in_order = positions.argsort(dim=-1)
    return Kept(tokens_at(tokens, in_order), positions.gather(1, in_order))


def _weighted_mean(context: SelectionContext, weights: Tensor) -> Tensor:
    """Return the means of the tokens under `weights` [B, N, K], [B, K, D]."""
    total = weights.sum(dim=1)[..., None].clamp(min=1e-6)
    mean = weights.transpose(1, 2) @ context.tokens.float() / total
    return mean.to(context.tokens.dtype)
