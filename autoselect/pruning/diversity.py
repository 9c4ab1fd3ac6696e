"""How much kept tokens must differ: one weight, or one for each share of tokens that stays.

A weight means something only beside a scale of relevance:

    minmax    scores scaled to 0..1 between the lowest and the highest of the image
    rank      1 - log(place) / log(N): 1 at the best score, place 1, and 0 at the last, place N

One outlier stretches `minmax`, and how far depends on the model that the selector was trained
with. `rank` knows no distances; as in discounted gain, places count by their logarithm, so the top
of the order is told apart and the rest hardly. Selectors without a named scale have `minmax`.

Dimension letters: B images, N visual tokens.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.config.bounds import check_diversity
from autoselect.ops.checks import check_scores

Relevance = Literal["minmax", "rank"]
RELEVANCES: tuple[Relevance, ...] = ("minmax", "rank")


@dataclass(frozen=True)
class TunedWeight:
    """The weight that was found best if this share of the tokens stays.

    Attributes:
        share: K / N, above 0 and at most 1.
        weight: 0..1.
    """

    share: float
    weight: float


@dataclass(frozen=True)
class DiversityCurve:
    """Weights at some shares, ascending; between them the weight is linear in log(share).

    Outside of them it is that of the nearest share.

    Raises:
        ConfigError: no share, shares that are not ascending in 0..1, or weights outside 0..1.
    """

    points: tuple[TunedWeight, ...]

    def __post_init__(self) -> None:
        shares = [point.share for point in self.points]
        rising = all(a < b for a, b in itertools.pairwise(shares))
        if not shares or not rising or not (0 < shares[0] and shares[-1] <= 1):
            raise ConfigError(
                f"diversity lists the shares {shares}; they must ascend, above 0 and at most 1"
            )
        for point in self.points:
            check_diversity(point.weight)

    def at(self, share: float) -> float:
        """Return the weight if `share` of the tokens stays.

        In plain Python, because torch.compile fails on NumPy in inference mode.
        """
        for low, high in itertools.pairwise(self.points):
            if low.share < share < high.share:
                slope = (high.weight - low.weight) / (math.log(high.share) - math.log(low.share))
                return low.weight + slope * (math.log(share) - math.log(low.share))
        return min(self.points, key=lambda point: abs(point.share - share)).weight

    def __str__(self) -> str:
        return ", ".join(f"{p.weight:g} at {100 * p.share:.3g} %" for p in self.points)


Diversity = float | DiversityCurve


def checked_diversity(value: Any) -> Diversity:
    """Return a diversity from a number, a curve, or a curve as `config.json` stores it.

    Raises:
        ConfigError: a weight outside 0..1, or not such a value.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not all(_is_point(point) for point in value):
            raise ConfigError(
                f'diversity={value!r} must be a number of 0..1, or a list of {{"share": 0.1, '
                '"weight": 0.7}'
            )
        value = DiversityCurve(tuple(TunedWeight(p["share"], p["weight"]) for p in value))
    if isinstance(value, DiversityCurve):
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigError(
            f"diversity={value!r} is not a number; choose 0..1 (0 is the score alone, "
            "1 ignores it after the first token), or a DiversityCurve"
        )
    check_diversity(float(value))
    return float(value)


def _is_point(value: Any) -> bool:
    """Return True for a mapping of the two numbers of a `TunedWeight`."""
    if not isinstance(value, Mapping) or value.keys() != {"share", "weight"}:
        return False
    return all(isinstance(n, int | float) and not isinstance(n, bool) for n in value.values())


def stored_diversity(value: Diversity) -> float | list[dict[str, float]]:
    """Return a diversity as a JSON value."""
    return value if isinstance(value, float) else [asdict(point) for point in value.points]


def weight_at(diversity: Diversity, k: int, num_tokens: int) -> float:
    """Return the weight if `k` of `num_tokens` tokens stay."""
    if isinstance(diversity, float):
        return diversity
    return diversity.at(min(1.0, k / max(1, num_tokens)))


def check_relevance(relevance: str) -> None:
    if relevance not in RELEVANCES:
        raise ConfigError(
            f"relevance={relevance!r} is unknown; choose one of {', '.join(RELEVANCES)}"
        )


def on_scale(relevance: Relevance, scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return scores [B, N] on a scale, for `diverse_top_k`, which scales linearly to 0..1 itself.

    On the scale of ranks that is minus the logarithm of a token's place, 0 for the best. Ties keep
    their order: the lowest position goes first. `mask` is true at real tokens, [B, N].

    Raises:
        ConfigError: (on a CPU) a score is NaN.
    """
    if relevance == "minmax":
        return scores
    check_scores(scores, mask)
    known = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    order = known.argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(1, scores.shape[1] + 1, dtype=torch.float32, device=scores.device)
    values = torch.xlogy(-1.0, places).expand_as(scores)
    return torch.empty_like(scores, dtype=torch.float32).scatter_(1, order, values)
