"""Coverage in training: a token's score is lowered by its likeness to tokens that go before it.

With scores r, [I, N], and c_ij the cosine of tokens i and j after subtraction of their image's mean
token, K tokens are taken one after another, each the one with the largest

    a_i = r_i - weight * m_i,   m_i = max of c_ij over the tokens j taken before i, or -1

(maximal marginal relevance, Carbonell and Goldstein, SIGIR 1998, as `autoselect.ops.diverse_top_k`
takes them at selection). A taken token keeps the m_i that it had then; the others have that of the
end. No a_i of a token left over exceeds that of a token taken, so soft top-K of a has the budget K
and, at a low temperature, opens the gates of exactly these tokens. The likeness counts as a
constant: gradients reach the Scorer through r. All of this is ours.

Dimension letters: I images, N visual tokens, K tokens taken, D width.
"""

import torch
from torch import Tensor

from autoselect.ops.autocast import without_autocast
from autoselect.ops.diverse_top_k import centred_directions
from autoselect.ops.marginal_order import MOST_TOKENS, marginal_order

MOST_PAIRS = 2**26
"""Likenesses that are in memory at once, 256 MiB; those of one image may be more."""


def covered_scores(
    scores: Tensor, tokens: Tensor, k: int, weight: float, mask: Tensor | None = None
) -> Tensor:
    """Return the lowered scores a, [I, N], with the gradient of `scores`.

    Args:
        scores: importance logits r, [I, N].
        tokens: visual tokens, [I, N, D].
        k: number of tokens taken, 1..N.
        weight: weight of the likeness, in units of the scores.
        mask: true at real tokens, [I, N]; all are real when None.
    """
    return scores - weight * likeness_before(scores, tokens, k, weight, mask)


@torch.no_grad()
def likeness_before(
    scores: Tensor, tokens: Tensor, k: int, weight: float, mask: Tensor | None = None
) -> Tensor:
    """Return m, [I, N], see the head of this module; arguments as `covered_scores`."""
    scores = scores.float()
    images, count = scores.shape
    free = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    part = max(1, MOST_PAIRS // count**2)
    if images > part:
        parts = zip(scores.split(part), tokens.split(part), free.split(part), strict=True)
        return torch.cat([likeness_before(r, x, k, weight, valid) for r, x, valid in parts])
    with without_autocast(scores.device):
        unit = centred_directions(tokens.float(), free)
        if count > MOST_TOKENS:
            return _one_after_another(scores, unit, k, weight, free)
        likeness = unit @ unit.mT
        return _of_order(marginal_order(scores, likeness, k, weight, mask), likeness, free)


def _of_order(order: Tensor, likeness: Tensor, free: Tensor) -> Tensor:
    """Return m from the order in which tokens are taken, [I, K], and all likenesses, [I, N, N]."""
    images, count = free.shape
    k, there, place = order.shape[1], order >= 0, order.clamp(min=0)
    rows = likeness.gather(1, place[:, :, None].expand(-1, -1, count))
    rows = rows.masked_fill(~there[:, :, None], -1.0)
    at_end = rows.amax(1).clamp(min=-1.0).masked_fill(~free, -1.0)
    # Row t, column u: likeness of the t-th token taken to the u-th, where t comes before u.
    among = rows.gather(2, place[:, None].expand(-1, k, -1))
    earlier = torch.ones(k, k, dtype=torch.bool, device=order.device).triu(1)
    before = among.masked_fill(~earlier, -1.0).amax(1).clamp(min=-1.0)
    places = order.where(there, count)
    return torch.cat([at_end, at_end.new_zeros(images, 1)], 1).scatter(1, places, before)[:, :count]


def _one_after_another(scores: Tensor, unit: Tensor, k: int, weight: float, free: Tensor) -> Tensor:
    """Return m without the likenesses of all pairs, which would take too much memory."""
    likeness = torch.full_like(scores, -1.0)
    row = torch.arange(len(scores), device=scores.device)
    for _ in range(k):
        taken = (scores - weight * likeness).masked_fill(~free, -torch.inf).argmax(dim=-1)
        free = free.scatter(1, taken[:, None], False)
        cosine = (unit @ unit[row, taken][:, :, None]).squeeze(-1)
        likeness = torch.where(free, torch.maximum(likeness, cosine), likeness)
    return likeness
