"""Figure 4: compare the similarity of the best tokens with that of the worst."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.samples import EvaluationSample, encode_samples
from autoselect.ops.hard_top_k import hard_top_k

PAPER_COUNT = 64
IMAGES_PER_BATCH = 32


@dataclass(frozen=True)
class Similarity:
    """Cosine similarity of the best and the worst tokens, mean over images.

    Attributes:
        matrix: best tokens first, then the worst, each in the order of their score, [2k, 2k].
        top: mean similarity of two different best tokens.
        bottom: mean similarity of two different worst tokens.
        across: mean similarity of a best and a worst token.
        positions: (best, worst) positions of each image.
    """

    matrix: Tensor
    top: float
    bottom: float
    across: float
    positions: list[tuple[list[int], list[int]]]


@torch.inference_mode()
def token_similarity(
    vlm: Any,
    selector: Any,
    samples: Sequence[EvaluationSample],
    count: int | None = None,
) -> Similarity:
    """Compare the `count` best and the `count` worst tokens of every image.

    Args:
        count: tokens on either side; by default 64 as in the paper, at most a quarter of N.
    """
    total, positions = None, []
    for start in range(0, len(samples), IMAGES_PER_BATCH):
        batch = samples[start : start + IMAGES_PER_BATCH]
        visual = encode_samples(vlm, batch, selector.site)
        assert visual.mask is None, "figure 4 compares equally many tokens of every image"
        k = count or min(PAPER_COUNT, visual.tokens.shape[1] // 4)
        scores = selector.score(visual.tokens).float()
        top, bottom = hard_top_k(scores, k), hard_top_k(-scores, k)
        chosen = torch.cat([_by_score(scores, top), _by_score(scores, bottom)], dim=1)
        unit = torch.nn.functional.normalize(visual.tokens.float(), dim=-1)
        unit = unit.gather(1, chosen[..., None].expand(-1, -1, unit.shape[2]))
        part = (unit @ unit.transpose(1, 2)).sum(dim=0)
        total = part if total is None else total + part
        positions += list(zip(top.tolist(), bottom.tolist(), strict=True))
    assert total is not None
    return _summary(total.cpu() / len(samples), positions)


def _by_score(scores: Tensor, positions: Tensor) -> Tensor:
    order = scores.gather(1, positions).argsort(dim=-1, descending=True, stable=True)
    return positions.gather(1, order)


def _summary(matrix: Tensor, positions: list[tuple[list[int], list[int]]]) -> Similarity:
    k = len(matrix) // 2
    different = ~torch.eye(k, dtype=torch.bool)
    return Similarity(
        matrix=matrix,
        top=float(matrix[:k, :k][different].mean()),
        bottom=float(matrix[k:, k:][different].mean()),
        across=float(matrix[:k, k:].mean()),
        positions=positions,
    )
