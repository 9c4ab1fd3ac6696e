"""Baselines that choose tokens so that together they cover the image."""

import torch
from torch import Tensor

from autoselect.evaluation.methods.context import Kept, SelectionContext
from autoselect.evaluation.samples import Box


def grid_positions(grid: tuple[int, int] | None, num_tokens: int, budget: int) -> Tensor:
    """Return `budget` evenly spaced positions, [K]: equidistant rows, equidistant columns in each.

    Without a grid they are evenly spaced along the sequence.
    """
    if grid is None or grid[0] * grid[1] != num_tokens or budget >= num_tokens:
        return ((torch.arange(budget) + 0.5) * num_tokens / budget).long()
    height, width = grid
    rows = min(height, budget, max(1, round((budget * height / width) ** 0.5)))
    rows = max(rows, -(-budget // width))
    shares = [budget * (r + 1) // rows - budget * r // rows for r in range(rows)]
    lines = []
    for r, share in enumerate(shares):
        line = int((r + 0.5) * height / rows)
        columns = ((torch.arange(share) + 0.5) * width / share).long()
        lines.append(line * width + columns)
    return torch.cat(lines)


def uniform_grid(context: SelectionContext, budget: int) -> Kept:
    """Keep evenly spaced positions, the same for every image."""
    batch, count = context.tokens.shape[:2]
    positions = grid_positions(context.grid, count, budget).to(context.tokens.device)
    return context.at(positions.expand(batch, -1))


def divprune(context: SelectionContext, budget: int) -> Kept:
    """Keep tokens by greedy max-min of the cosine distance (DivPrune, arXiv 2503.02175, alg. 1).

    The first token is the one farthest from its nearest neighbour; each next one is the farthest
    from the tokens already kept.
    """
    distance = 1 - context.similarity()
    batch, count = distance.shape[:2]
    itself = torch.eye(count, dtype=torch.bool, device=distance.device)
    nearest = distance.masked_fill(itself, float("inf")).amin(dim=-1)
    kept: list[Tensor] = []
    for step in range(budget):
        chosen = nearest.argmax(dim=-1)
        kept.append(chosen)
        from_chosen = distance[torch.arange(batch, device=chosen.device), chosen]
        nearest = from_chosen if step == 0 else torch.minimum(nearest, from_chosen)
        nearest = nearest.scatter(1, torch.stack(kept, dim=1), -1.0)
    return context.at(torch.stack(kept, dim=1))


def cdpruner(context: SelectionContext, budget: int) -> Kept:
    """Keep tokens by greedy determinantal selection, weighted by relevance to the question.

    CDPruner (arXiv 2506.10967) with kernel r_i cos(x_i, x_j) r_j, maximised greedily by incremental
    Cholesky (Chen et al. 2018). The paper takes the relevance r from CLIP's text encoder, which a
    general VLM does not have; here r is the cosine to the mean embedding of the prompt. As in the
    authors' code, its sign is inverted before it is scaled to [0, 1] in each row: the tokens least
    like the text count as the most relevant. On validation images of the reference VLM this was the
    strongest of four variants; with the question's words alone, or without the inverted sign, it
    keeps less.
    """
    assert context.question is not None
    unit = context.unit_tokens()
    text = torch.nn.functional.normalize(context.question.float(), dim=-1)
    relevance = -(unit @ text[:, :, None]).squeeze(-1)
    low, high = relevance.amin(-1, keepdim=True), relevance.amax(-1, keepdim=True)
    relevance = 0.01 + 0.99 * (relevance - low) / (high - low).clamp(min=1e-6)
    kernel = relevance[:, :, None] * (unit @ unit.transpose(1, 2)) * relevance[:, None, :]
    return context.at(greedy_determinant(kernel, budget))


def greedy_determinant(kernel: Tensor, budget: int) -> Tensor:
    """Return positions [B, K] that greedily maximise the determinant of `kernel` [B, N, N]."""
    batch, count = kernel.shape[:2]
    row = torch.arange(batch, device=kernel.device)
    gain = kernel.diagonal(dim1=1, dim2=2).clone()
    factors = kernel.new_zeros(batch, budget, count)
    kept: list[Tensor] = []
    for step in range(budget):
        chosen = gain.argmax(dim=-1)
        kept.append(chosen)
        earlier = factors[:, :step]
        shared = (earlier[row, :, chosen][:, :, None] * earlier).sum(dim=1)
        scale = gain[row, chosen].clamp(min=1e-12).sqrt()[:, None]
        factors[:, step] = (kernel[row, chosen] - shared) / scale
        gain = (gain - factors[:, step] ** 2).clamp(min=0.0)
        gain = gain.scatter(1, torch.stack(kept, dim=1), -1.0)
    return torch.stack(kept, dim=1)


def oracle(context: SelectionContext, budget: int) -> Kept:
    """Keep one token for every object in the ground truth, then the rest of the image evenly.

    An upper reference for the reference data, not a baseline: it reads the boxes of the sample's
    questions.
    """
    assert context.boxes is not None and context.grid is not None
    rows = [oracle_positions(boxes, context.grid, budget) for boxes in context.boxes]
    return context.at(torch.stack(rows).to(context.tokens.device))


def oracle_positions(boxes: tuple[Box, ...], grid: tuple[int, int], budget: int) -> Tensor:
    """Return `budget` positions [K]: nearest to the centres of the boxes, then farthest from all.

    A wide box is cut into square pieces (one per printed character). The rest of the budget goes,
    one by one, to the token farthest from those kept: further tokens of the same objects were
    measured to help less than an even view of the rest.
    """
    height, width = grid
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([row.flatten(), column.flatten()], dim=1).float()
    chosen: dict[int, None] = {}
    for box in dict.fromkeys(boxes):
        for left, top, right, bottom in square_pieces(box, grid):
            centre = torch.tensor([(top + bottom) * height, (left + right) * width]) / 2 - 0.5
            chosen.setdefault(int((places - centre).norm(dim=1).argmin()))
    kept = list(chosen)[:budget]
    distance = torch.cdist(places, places[kept]).amin(dim=1)
    while len(kept) < budget:
        kept.append(int(distance.argmax()))
        distance = torch.minimum(distance, (places - places[kept[-1]]).norm(dim=1))
        distance[kept] = -1.0
    return torch.tensor(kept)


def square_pieces(box: Box, grid: tuple[int, int]) -> list[Box]:
    """Cut a wide box into roughly square pieces; sides are fractions of the image."""
    left, top, right, bottom = box
    wide, high = (right - left) * grid[1], (bottom - top) * grid[0]
    count = max(1, round(wide / high)) if high > 0 else 1
    step = (right - left) / count
    return [(left + i * step, top, left + (i + 1) * step, bottom) for i in range(count)]
