"""Baselines that drop duplicates: DART and PruneSID.

Dimension letters: B rows, N visual tokens, K that stay, D width, G groups.
"""

import torch
from torch import Tensor

from autoselect.evaluation.methods.context import Kept, SelectionContext

PIVOT_SHARE = 8 / 64
TOKENS_PER_GROUP = 4
THRESHOLD_TOKENS = 32


def dart(context: SelectionContext, budget: int) -> Kept:
    """Keep pivots and what resembles them least (DART, arXiv 2502.11494).

    Pivots are the tokens with the largest L1 norm, one for every eight that stay. In turn each
    adds the tokens with the smallest cosine to it. The authors take norms of the keys in an early
    layer of the language model, and some pivots among the text; here tokens are removed at the
    input, where only the tokens themselves are known.
    """
    tokens, unit = context.tokens.float(), context.unit_tokens()
    pivots = min(budget, max(1, round(budget * PIVOT_SHARE)))
    norms = tokens.abs().sum(dim=-1)
    chosen = norms.argsort(dim=-1, descending=True, stable=True)[:, :pivots]
    taken = torch.zeros_like(norms, dtype=torch.bool).scatter(1, chosen, True)
    rest = budget - pivots
    for turn in range(pivots):
        share = rest * (turn + 1) // pivots - rest * turn // pivots
        likeness = (unit @ _row(unit, chosen[:, turn])[:, :, None]).squeeze(-1)
        order = likeness.masked_fill(taken, float("inf")).argsort(dim=-1, stable=True)
        taken = taken.scatter(1, order[:, :share], True)
    return context.marked(taken)


def _row(values: Tensor, positions: Tensor) -> Tensor:
    return values[torch.arange(len(values), device=values.device), positions]


def prunesid(context: SelectionContext, budget: int) -> Kept:
    """Group tokens by principal components, drop duplicates in each (PruneSID, arXiv 2603.09480).

    There is one component for every four tokens that stay, of the sigmoid of the features, and a
    token belongs to the component with its largest absolute loading. Within a group, the most
    salient token suppresses those whose cosine to it exceeds K/32 x the mean cosine, and so on. The
    budget is shared by the numbers of survivors, at least one per group while it lasts. Survivors
    go first, then the others by salience. Ours: exact components where the authors draw a random
    projection, largest remainders where they round and refill.
    """
    similarity = context.similarity().cpu()
    salience = context.salience().cpu()
    groups = component_groups(context.tokens.float(), max(1, budget // TOKENS_PER_GROUP)).cpu()
    rows = [
        _representatives(own, near, mine, budget)
        for own, near, mine in zip(salience, similarity, groups, strict=True)
    ]
    return context.at(torch.stack(rows).to(context.tokens.device))


def component_groups(tokens: Tensor, count: int) -> Tensor:
    """Return the principal component that each token of [B, N, D] loads on most, [B, N]."""
    features = tokens.sigmoid().transpose(1, 2)
    centred = features - features.mean(dim=1, keepdim=True)
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    return components[:, :count].abs().argmax(dim=1)


def _representatives(salience: Tensor, similarity: Tensor, groups: Tensor, budget: int) -> Tensor:
    """Return the positions that stay of one image, [K]."""
    upper = torch.ones_like(similarity).triu(1).bool()
    threshold = budget / THRESHOLD_TOKENS * similarity[upper].mean() if upper.any() else 0.0
    ranked, survivors = [], []
    for group in groups.unique().tolist():
        members = (groups == group).nonzero()[:, 0]
        order = members[salience[members].argsort(descending=True, stable=True)].tolist()
        kept: list[int] = []
        for token in order:
            if all(similarity[token, other] <= threshold for other in kept):
                kept.append(token)
        ranked.append(kept + [token for token in order if token not in kept])
        survivors.append(len(kept))
    shares = _shares(survivors, [len(own) for own in ranked], budget)
    chosen = [token for own, share in zip(ranked, shares, strict=True) for token in own[:share]]
    return torch.tensor(chosen)


def _shares(survivors: list[int], sizes: list[int], budget: int) -> list[int]:
    """Share `budget`: one per group, most survivors first, then by largest remainders."""
    order = sorted(range(len(sizes)), key=lambda group: -survivors[group])
    shares = [0] * len(sizes)
    for group in order[:budget]:
        shares[group] = 1
    while sum(shares) < budget:
        known = [group for group in order if shares[group] < sizes[group]]
        wanted = {g: budget * survivors[g] / sum(survivors) - shares[g] for g in known}
        shares[max(known, key=lambda group: wanted[group])] += 1
    return shares
