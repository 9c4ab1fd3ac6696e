"""Sites of the gate: one small object per site, which reads the visual tokens of a batch there.

    after_projector     gates what the language model sees, deepstack features included
    before_projector    gates the output of the vision encoder; the projector follows the Denoiser

The Scorer reads projector outputs at both sites. The paper's figure 2 shows the second site; the
first is our default, because every architecture has it.

Dimension letters: B rows, T prompt tokens, I images, N visual tokens of one image, M of all, D
width, L later layers with features of their own (deepstack), P width of the projector's input, C
gated channels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError, GateSite
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.blocks import Block


@dataclass(frozen=True)
class VisualTokens:
    """Encoded images of a batch of prompts.

    Attributes:
        outputs: encoder outputs by modality, see `VisualAdapter.encode`.
        blocks: places of the I images in the prompts.
        tokens: projector outputs, which the Scorer reads, [I, N, D].
        gated: features that the gate acts on, [I, N, C].
        mask: true at real tokens, [I, N]; None if all images have N tokens.
        width: number of leading channels of `gated` that the Denoiser repairs.
    """

    outputs: dict[str, Any]
    blocks: list[Block]
    tokens: Tensor
    gated: Tensor
    mask: Tensor | None
    width: int

    @property
    def counts(self) -> list[int]:
        return [len(block) for block in self.blocks]

    def real(self, values: Tensor) -> Tensor:
        """Return the entries of `values` [I, N, ...] at real tokens, in order, [M, ...]."""
        return values.flatten(0, 1) if self.mask is None else values[self.mask]


class AfterProjector:
    """The gate acts on what the language model sees: C = (1 + L) D."""

    @torch.no_grad()
    def read(
        self,
        adapter: VisualAdapter,
        pixels: Mapping[str, Tensor],
        input_ids: Tensor,
        lengths: Sequence[int] | None = None,
    ) -> VisualTokens:
        """Encode the images of a batch and find them in its prompts.

        Args:
            adapter: adapter of the model.
            pixels: arguments of the model's `get_image_features`.
            input_ids: prompts with all placeholders, [B, T].
            lengths: visual tokens of each image; None to apply the family's rule.

        Raises:
            ConfigError: placeholders and visual tokens differ in number.
        """
        outputs = adapter.encode(pixels)
        blocks = adapter.blocks(input_ids, outputs, lengths)
        gated, mask = adapter.tokens(blocks, outputs, later=True)
        tokens = gated[..., : adapter.width]
        return VisualTokens(outputs, blocks, tokens, gated, mask, adapter.width)

    def finish(self, _adapter: VisualAdapter, tokens: Tensor) -> Tensor:
        """Return repaired tokens as the language model takes them, [I, N, C]."""
        return tokens


class BeforeProjector:
    """The gate acts on the projector's input, for projectors that map each token alone: C = P."""

    @torch.no_grad()
    def read(
        self,
        adapter: VisualAdapter,
        pixels: Mapping[str, Tensor],
        input_ids: Tensor,
        lengths: Sequence[int] | None = None,
    ) -> VisualTokens:
        """Encode the images of a batch, with the projector's inputs as the gated features.

        Raises:
            ConfigError: placeholders and visual tokens differ in number, or the model has no
                projector that maps images of equal size token by token.
        """
        with _projector_inputs(adapter.projector) as seen:
            outputs = adapter.encode(pixels)
        blocks = adapter.blocks(input_ids, outputs, lengths)
        tokens, mask = adapter.tokens(blocks, outputs)
        if len(seen) != 1 or seen[0].shape[:-1] != tokens.shape[:-1]:
            raise ConfigError(
                f"gate.site=before_projector: model={type(adapter.model).__name__} "
                f"({adapter.model.config.model_type}) has no projector that takes images of equal "
                "size token by token; use gate.site=after_projector"
            )
        return VisualTokens(outputs, blocks, tokens, seen[0], mask, seen[0].shape[-1])

    def finish(self, adapter: VisualAdapter, tokens: Tensor) -> Tensor:
        """Run the projector on repaired tokens, [I, N, P] to [I, N, D], with gradient."""
        assert adapter.projector is not None
        return adapter.projector(tokens.to(adapter.model.dtype))


Site = AfterProjector | BeforeProjector
SITES: dict[GateSite, Site] = {
    "after_projector": AfterProjector(),
    "before_projector": BeforeProjector(),
}


@contextmanager
def _projector_inputs(projector: torch.nn.Module | None) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    if projector is None:
        yield seen
        return
    hook = projector.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        hook.remove()
