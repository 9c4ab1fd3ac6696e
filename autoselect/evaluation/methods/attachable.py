"""Baselines of the evaluator in the place of a selector, for `attach`.

`attach` asks a selector for scores, and keeps the K largest. A baseline that picks K positions
gives those 1 and the others 0. Methods that merge tokens, or need attention maps or the question,
have no such scores: they are evaluated only where a prompt can be put together from embeddings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoselect.config import ConfigError
from autoselect.evaluation.methods.context import SelectionContext
from autoselect.evaluation.methods.registry import METHODS
from autoselect.ops.hard_top_k import hard_top_k
from autoselect.pruning.overlay import token_raster
from autoselect.pruning.selector import budget_to_tokens

BASELINES = ("random", "grid", "norm", "divprune")


class BaselineSelector(nn.Module):
    """A method of the evaluator with the interface of a `Selector`.

    Args:
        method: one of `BASELINES`.
        budget: K tokens (an integer), or the share that stays (a float).
        width: channels of the visual tokens.
        seed: of the random method.

    Attributes:
        keys: a name for each image of the next call, from which random choices are drawn; the
            same image then gets the same choice in every batch.
        sizes: width and height of each image of the next call, pixels; the raster of its tokens is
            taken to be the one nearest to that shape.

    Raises:
        ConfigError: a method that cannot be written as scores.
    """

    def __init__(self, method: str, budget: int | float, width: int, seed: int = 0) -> None:
        super().__init__()
        if method not in BASELINES:
            raise ConfigError(
                f"method={method!r} cannot be attached; choose autoselect or one of "
                f"{', '.join(BASELINES)} (`autoselect eval` runs the others)"
            )
        self.method = METHODS[method]
        self.budget = budget
        self.width = width
        self.seed = seed
        self.keys: Sequence[str] = ()
        self.sizes: Sequence[tuple[int, int]] = ()
        self.metadata = {"model": f"any; baseline {method}"}

    @torch.no_grad()
    def score(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """1 at the positions that the method keeps, 0 elsewhere, [B, N].

        Args:
            tokens: [B, N, D].
            mask: true at real tokens, [B, N].
        """
        scores = tokens.new_zeros(tokens.shape[:2], dtype=torch.float32)
        named, measured = (len(own) == len(tokens) for own in (self.keys, self.sizes))
        for row, own in enumerate(tokens):
            count = len(own) if mask is None else int(mask[row].sum())
            key = self.keys[row] if named else str(row)
            grid = token_raster(count, self.sizes[row]) if measured else None
            context = SelectionContext(own[None, :count], (key,), grid=grid, seed=self.seed)
            kept = self.method.keep(context, budget_to_tokens(self.budget, count))
            scores[row, kept.positions[0]] = 1.0
        return scores

    def choose(self, scores: Tensor, tokens: Tensor, k: int, mask: Tensor | None = None) -> Tensor:
        """The positions with score 1, int64, [B, K], ascending; arguments as `Selector.choose`."""
        return hard_top_k(scores, k, mask)
