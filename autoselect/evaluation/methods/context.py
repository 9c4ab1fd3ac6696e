"""Input and output of a method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autoselect.config import GateSite
from autoselect.evaluation.samples import Box
from autoselect.ops.hard_top_k import select_tokens, tokens_at

PATCHES: GateSite = "before_encoder"
"""The site whose features are patch embeddings."""


@dataclass(frozen=True)
class Kept:
    """The tokens the LLM sees, [B, K, D], and their positions in the full sequence, [B, K]."""

    tokens: Tensor
    positions: Tensor


@dataclass(frozen=True)
class SelectionContext:
    """One batch, one row per image or per question.

    Attributes:
        tokens: projector outputs, [B, N, D].
        keys: name of each row, from which random choices are drawn.
        grid: rows and columns of the token grid; None if the tokens do not form one.
        seed: seed of random choices.
        class_attention: attention of the vision tower's CLS token, or what each token receives on
            average if the tower has none, [B, N].
        question: mean embedding of the prompt's text, its template included, [B, D].
        llm_attention: attention of the prompt's last token to each visual token, [B, N].
        boxes: known regions of each row (left, top, right, bottom), see `ImageTokens`.
        at_site: features at earlier sites of selectors, [B, N, C] each, see `autoselect.vlm.sites`.
        onward: runs what follows each of these sites on features of some tokens, [B, K, C], and
            returns projector outputs, [B, K, D].
    """

    tokens: Tensor
    keys: tuple[str, ...]
    grid: tuple[int, int] | None = None
    seed: int = 0
    class_attention: Tensor | None = None
    question: Tensor | None = None
    llm_attention: Tensor | None = None
    boxes: tuple[tuple[Box, ...], ...] | None = None
    at_site: Mapping[str, Tensor] = field(default_factory=dict)
    onward: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def scored(self, site: str) -> Tensor:
        """Return the features that a selector of a site reads, [B, N, C]."""
        return self.at_site.get(site, self.tokens)

    def encoded(self, positions: Tensor) -> Kept:
        """Return what the vision encoder makes of the patches at `positions` [B, K] alone."""
        patches = tokens_at(self.at_site[PATCHES], positions)
        return Kept(self.onward[PATCHES](patches), positions)

    def take(self, scores: Tensor, budget: int) -> Kept:
        """Return the `budget` tokens with the largest scores [B, N], in image order."""
        return Kept(*select_tokens(self.tokens, scores.float(), budget))

    def at(self, positions: Tensor) -> Kept:
        """Return the tokens at `positions` [B, K], in image order."""
        ordered = positions.sort(dim=-1).values
        return Kept(tokens_at(self.tokens, ordered), ordered)

    def marked(self, taken: Tensor) -> Kept:
        """Return the tokens at true entries of `taken` [B, N], equally many in each row."""
        positions = taken.nonzero()[:, 1].view(len(taken), -1)
        return Kept(tokens_at(self.tokens, positions), positions)

    def salience(self) -> Tensor:
        """Return `class_attention` in float32."""
        assert self.class_attention is not None
        return self.class_attention.float()

    def unit_tokens(self) -> Tensor:
        """Return the tokens scaled to length one, float32, [B, N, D]."""
        return torch.nn.functional.normalize(self.tokens.float(), dim=-1)

    def similarity(self) -> Tensor:
        """Return the cosine of every two tokens, float32, [B, N, N]."""
        unit = self.unit_tokens()
        return unit @ unit.transpose(1, 2)
