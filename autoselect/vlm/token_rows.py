"""Visual tokens of a call as one padded row per image, for a scorer or a gate.

Dimension letters: M placeholders of the whole batch, I images, N visual tokens of the largest
image, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from torch import Tensor

from autoselect.vlm.blocks import Block
from autoselect.vlm.host import Sent


@dataclass(frozen=True)
class TokenRows:
    """Which rows of the feature matrix each image has, in host integers.

    Attributes:
        images: I.
        size: N.
        index: rows of the matrix of each image's tokens, and false at padding, both [I, N]; None if
            the matrix is the padded rows already.
        padded: whether images have fewer than N tokens.
    """

    images: int
    size: int
    index: Sent | None
    padded: bool

    @classmethod
    def of(
        cls, blocks: Sequence[Block], entries: Sequence[tuple[str, Sequence[int]]]
    ) -> "TokenRows":
        """Find the rows of all blocks.

        Args:
            blocks: the I images.
            entries: visual tokens of each entry of the features, by modality, in the order of the
                matrix.
        """
        firsts = accumulate((sum(sizes) for _, sizes in entries), initial=0)
        bases = {name: first for (name, _), first in zip(entries, firsts, strict=False)}
        starts = np.array([bases[block.modality] + block.start for block in blocks])
        counts = np.array([len(block) for block in blocks])
        size = int(counts.max())
        if (counts == size).all() and (starts == size * np.arange(len(blocks))).all():
            return cls(len(blocks), size, None, False)
        places = np.arange(size)
        index = starts[:, None] + places.clip(max=counts[:, None] - 1)
        real = places < counts[:, None]
        return cls(len(blocks), size, Sent([index, real]), not real.all())

    def take(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the tokens [I, N, D] of a feature matrix [M, D], with zeros at padding.

        The second result is true at real tokens, [I, N]; None if all are real.
        """
        if self.index is None:
            return features.view(self.images, self.size, -1), None
        index, mask = self.index.on(features.device)
        tokens = features.index_select(0, index.view(-1)).view(self.images, self.size, -1)
        if not self.padded:
            return tokens, None
        return tokens.masked_fill_((mask == 0)[..., None], 0.0), mask != 0
