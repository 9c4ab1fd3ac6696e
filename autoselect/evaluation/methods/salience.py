"""Baselines that weigh the salience of tokens against how well the kept ones cover the image.

Salience is the attention that the tower's class token pays to each token; of a tower without one,
the attention that each token receives on average (see `tower_attention.py`). The papers compare
tokens as the tower gives them; here all methods see the projector outputs.

Dimension letters: B rows, N visual tokens, K that stay.
"""

import torch
from torch import Tensor

from autoselect.evaluation.methods.context import Kept, SelectionContext

SCORE_POWER = 0.8
IMPORTANT_SHARE = 0.5
REMOVED_TOGETHER = 8
CROPS = 16


def scope(context: SelectionContext, budget: int) -> Kept:
    """Keep tokens greedily by salience x what they add to the coverage (SCOPE, arXiv 2510.24214).

    A token j adds sum_i max(0, cos(x_i, x_j) - c_i), and c_i = max(0, the largest cosine of x_i to
    the kept tokens). The exponent of the salience is 1, as in the authors' code.
    """
    salience, similarity = context.salience(), context.similarity()
    row = torch.arange(len(salience), device=salience.device)
    covered = torch.zeros_like(salience)
    taken = torch.zeros_like(salience, dtype=torch.bool)
    for _ in range(budget):
        gain = (similarity - covered[:, :, None]).clamp(min=0).sum(dim=1) * salience
        chosen = gain.masked_fill(taken, -1.0).argmax(dim=-1)
        taken[row, chosen] = True
        covered = torch.maximum(covered, similarity[row, chosen])
    return context.marked(taken)


def score(context: SelectionContext, budget: int) -> Kept:
    """Keep tokens by greedy weighted k-center: distance x salience^0.8 (SCoRe, CVPR 2026).

    The distance of a token is 1 - cosine to the nearest kept one. The first token is the most
    salient. Of the paper only its abstract and this form were available to us: what it does at the
    first token and in ties is our choice.
    """
    salience, similarity = context.salience(), context.similarity()
    row = torch.arange(len(salience), device=salience.device)
    weights = salience**SCORE_POWER
    distance = torch.ones_like(salience)
    taken = torch.zeros_like(salience, dtype=torch.bool)
    for step in range(budget):
        chosen = (weights * distance).masked_fill(taken, -1.0).argmax(dim=-1)
        taken[row, chosen] = True
        away = (1 - similarity[row, chosen]).clamp(min=0)
        distance = away if step == 0 else torch.minimum(distance, away)
    return context.marked(taken)


def vispruner(context: SelectionContext, budget: int) -> Kept:
    """Keep half by salience, half by removing duplicates (VisPruner, arXiv 2412.01818).

    The remaining tokens, most salient first, are split into alternating halves. Of the first half,
    the (at most) eight that are most similar to any token of the second are removed, and so on
    until enough are gone.
    """
    order = context.salience().argsort(dim=-1, descending=True, stable=True)
    important = int(budget * IMPORTANT_SHARE)
    unit = context.unit_tokens()
    rows = [
        torch.cat([own[:important], _distinct(own[important:], tokens, budget - important)])
        for own, tokens in zip(order, unit, strict=True)
    ]
    return context.at(torch.stack(rows))


def _distinct(rest: Tensor, unit: Tensor, wanted: int) -> Tensor:
    """Return `wanted` of the positions `rest`, after removing the most similar again and again."""
    while (surplus := len(rest) - wanted) > 0 and wanted:
        first, second = rest[::2], rest[1::2]
        likeness = (unit[first] @ unit[second].T).amax(dim=-1)
        count = min(REMOVED_TOGETHER, surplus, len(first))
        left = likeness.argsort(descending=True, stable=True)[count:]
        rest = torch.cat([first[left], second])
    return rest[:wanted]


def holov(context: SelectionContext, budget: int) -> Kept:
    """Share the budget over 16 crops by their mean salience (HoloV, arXiv 2510.02912).

    Crops are pieces of the sequence, and in each the most salient tokens stay, as in the authors'
    code. There a variance of similarities enters the crop's score after being scaled to its mean
    salience; that multiplies all crops alike and so does not change their shares. Whole shares come
    first, then one more token each for the largest shares; what a full crop cannot take goes to the
    crops with the next largest shares, where the authors' code pads with zeros.
    """
    salience = context.salience()
    count = salience.shape[1]
    crops = torch.tensor_split(torch.arange(count), min(CROPS, count))
    rows = []
    for own in salience.cpu():
        means = torch.stack([own[crop].mean() for crop in crops])
        shares = _shares(means, [len(crop) for crop in crops], budget)
        kept = [
            crop[own[crop].argsort(descending=True, stable=True)[:share]]
            for crop, share in zip(crops, shares, strict=True)
        ]
        rows.append(torch.cat(kept))
    return context.at(torch.stack(rows).to(salience.device))


def _shares(weights: Tensor, sizes: list[int], budget: int) -> list[int]:
    """Divide `budget` in proportion to `weights`, at most `sizes` each."""
    exact = weights / weights.sum().clamp(min=1e-12) * budget
    shares = [min(int(part), size) for part, size in zip(exact.tolist(), sizes, strict=True)]
    order = weights.argsort(descending=True, stable=True).tolist()
    while (missing := budget - sum(shares)) > 0:
        open_crops = [crop for crop in order if shares[crop] < sizes[crop]]
        for crop in open_crops[:missing]:
            shares[crop] += 1
    return shares
