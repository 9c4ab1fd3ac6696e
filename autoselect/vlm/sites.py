"""Sites of the gate: one small object per site, which reads the visual tokens of a batch there.

    after_projector     scores and gates what the language model sees, deepstack features included
    before_projector    scores and gates the output of the vision encoder; the projector follows
                        the Denoiser
    before_encoder      scores and gates patch embeddings; encoder and projector follow, and then
                        the Denoiser. At inference the encoder sees the kept patches only

The paper's figure 2 shows the second site and its figure 5 the third; its follow-up (arXiv
2605.28051) states the second. The first is our default, because every architecture has it.

Dimension letters: B rows, T prompt tokens, I images, N visual tokens of one image, M of all, D
width, L later layers with features of their own (deepstack), P width of the projector's input, C
gated channels, K tokens that stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from autoselect.config import ConfigError, GateSite
from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.blocks import Block
from autoselect.vlm.features import without_states
from autoselect.vlm.host import send
from autoselect.vlm.offloaded import is_offloaded
from autoselect.vlm.patches import (
    SiteFeatures,
    check_patches,
    embedding_layer,
    entries_of,
    read_patches,
    run_tower,
    run_tower_on_kept,
)
from autoselect.vlm.projectors import check_projector, input_width, projector_inputs

Repair = Callable[[Tensor], Tensor]
Outputs = dict[str, Any]


@dataclass(frozen=True)
class VisualTokens:
    """Images of a batch of prompts at a site.

    Attributes:
        outputs: encoder outputs by modality without the states of the tower's layers, or
            `SiteFeatures` at an earlier site.
        blocks: places of the I images in the prompts.
        tokens: features that the Scorer reads, [I, N, C without later layers].
        gated: features that the gate acts on, [I, N, C].
        mask: true at real tokens, [I, N]; None if all images have N tokens.
        width: number of channels that the Denoiser repairs.
    """

    outputs: Outputs
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
        rows = values.flatten(0, 1)
        if self.mask is None:
            return rows
        size = values.shape[1]
        own = [i * size + np.arange(count) for i, count in enumerate(self.counts)]
        return rows.index_select(0, *send([np.concatenate(own)], rows.device))


class AfterProjector:
    """Scores and gates what the language model sees: C = (1 + L) D."""

    def check(self, adapter: VisualAdapter) -> None:
        """Every supported family has the site."""

    def width(self, adapter: VisualAdapter) -> int:
        """Return the channels that the Scorer reads, D."""
        return adapter.width

    def repaired_width(self, adapter: VisualAdapter) -> int:
        return adapter.width

    def encode(self, adapter: VisualAdapter, inputs: Mapping[str, Any]) -> Outputs:
        """Return the features of a call's images and clips at the site, by modality."""
        return adapter.encode(inputs)

    def given(self, adapter: VisualAdapter, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a call of `generate`, encoded already if its own encoding would not do."""
        if not (is_offloaded(adapter.base) and adapter.has_images(inputs)):
            return inputs
        return adapter.with_outputs(inputs, self.encode(adapter, inputs))

    def onward(self, _adapter: VisualAdapter, _features: Outputs) -> Callable[[Tensor], Tensor]:
        """Return what follows the site: from features [I, K, C] to projector outputs [I, K, D].

        Args:
            features: what `encode` returned.
        """
        return lambda tokens: tokens

    def pruned(
        self, _adapter: VisualAdapter, features: Outputs, _kept: Tensor, _counts: Sequence[int]
    ) -> Outputs:
        """Return encoder outputs, right at the kept tokens.

        Args:
            features: what `encode` returned.
            kept: positions of the kept tokens of each image, image after image, int64.
            counts: how many stay of each image.
        """
        return features

    @torch.no_grad()
    def read(
        self,
        adapter: VisualAdapter,
        pixels: Mapping[str, Tensor],
        input_ids: Tensor | np.ndarray,
        lengths: Sequence[int] | None = None,
    ) -> VisualTokens:
        """Encode the images of a batch and find them in its prompts.

        Args:
            adapter: adapter of the model.
            pixels: arguments of the model's `get_image_features`.
            input_ids: prompts with all placeholders, [B, T]; a tensor of a device is read.
            lengths: visual tokens of each image; None to apply the family's rule.

        Raises:
            ConfigError: placeholders and visual tokens differ in number, or the model does not
                have the site.
        """
        outputs = self.encode(adapter, pixels)
        blocks = adapter.blocks(input_ids, outputs, lengths)
        gated, mask = adapter.tokens(blocks, outputs, later=True)
        scored = self.scored(adapter, gated)
        lean = {
            modality: output if isinstance(output, SiteFeatures) else without_states(output)
            for modality, output in outputs.items()
        }
        return VisualTokens(lean, blocks, scored, gated, mask, self.repaired_width(adapter))

    def scored(self, adapter: VisualAdapter, gated: Tensor) -> Tensor:
        """Return the channels of gated features that the Scorer reads."""
        return gated[..., : adapter.width]

    def finish(
        self, adapter: VisualAdapter, visual: VisualTokens, gated: Tensor, repair: Repair
    ) -> Outputs:
        """Return encoder outputs with gated and repaired tokens, with gradient.

        Features for later layers stay as gated.
        """
        own, later = gated[..., : visual.width], gated[..., visual.width :]
        repaired = torch.cat([repair(own), later], dim=-1) if later.shape[-1] else repair(own)
        return adapter.replace(visual.outputs, visual.blocks, repaired)


class _Earlier(AfterProjector):
    """A site before the language model: `encode` returns `SiteFeatures`, C channels each."""

    def given(self, adapter: VisualAdapter, inputs: dict[str, Any]) -> dict[str, Any]:
        if not adapter.has_images(inputs):
            return inputs
        return adapter.with_outputs(inputs, self.encode(adapter, inputs))

    def scored(self, _adapter: VisualAdapter, gated: Tensor) -> Tensor:
        return gated


class BeforeProjector(_Earlier):
    """Scores and gates the projector's input, if the projector maps each token alone: C = P."""

    def check(self, adapter: VisualAdapter) -> None:
        """Raise ConfigError if the model type is refused, or no projector or width is named."""
        self.width(adapter)

    def width(self, adapter: VisualAdapter) -> int:
        """Return P, the input channels of the projector's first linear layer."""
        config = adapter.model.config
        check_projector(config.model_type, getattr(config, "projector_pooling_ratio", 1))
        width = input_width(None if adapter.family.projects else adapter.projector)
        if width is None:
            raise _no_projector(adapter)
        return width

    def repaired_width(self, adapter: VisualAdapter) -> int:
        return self.width(adapter)

    def encode(self, adapter: VisualAdapter, inputs: Mapping[str, Any]) -> Outputs:
        """Return the projector's inputs.

        Raises:
            ConfigError: the model type is refused, features are encoded already, there are clips,
                or the projector does not map images of equal size token by token.
        """
        known = (inputs.get("mm_encoder_outputs") or {}).get("image")
        if isinstance(known, SiteFeatures):
            return {"image": known}
        self.check(adapter)
        with projector_inputs(adapter.projector) as seen:
            outputs = adapter.encode(inputs)
        entries = list(outputs["image"].pooler_output) if set(outputs) == {"image"} else []
        shape = seen[0][0].shape if len(seen) == 1 and len(seen[0]) == 1 else ()
        if len(shape) != 3 or [len(entry) for entry in entries] != [shape[1]] * shape[0]:
            raise _no_projector(adapter)
        in_list = not isinstance(outputs["image"].pooler_output, Tensor)
        return {"image": SiteFeatures(pooler_output=seen[0][0], in_list=in_list)}

    def onward(self, adapter: VisualAdapter, _features: Outputs) -> Callable[[Tensor], Tensor]:
        projector = adapter.projector
        assert projector is not None
        return lambda tokens: projector(tokens.to(adapter.model.dtype))

    def pruned(
        self, adapter: VisualAdapter, features: Outputs, _kept: Tensor, _counts: Sequence[int]
    ) -> Outputs:
        """Run the projector."""
        projected = self.onward(adapter, features)(features["image"].entries)
        return _as_encoded(features["image"], projected)

    def finish(
        self, adapter: VisualAdapter, visual: VisualTokens, gated: Tensor, repair: Repair
    ) -> Outputs:
        """Run the projector on repaired tokens [I, N, P], with gradient."""
        projected = self.onward(adapter, visual.outputs)(repair(gated))
        own = _as_encoded(visual.outputs["image"], projected)
        return adapter.replace(own, visual.blocks, projected)


class BeforeEncoder(_Earlier):
    """Scores and gates patch embeddings, positions added; class tokens stay: C of the tower."""

    def check(self, adapter: VisualAdapter) -> None:
        """Raise ConfigError if the model type is refused or its tower has no patch embeddings."""
        embedding_layer(adapter)

    def width(self, adapter: VisualAdapter) -> int:
        """Return the channels of a patch; the tower is tried on a few patches."""
        return check_patches(adapter)

    def encode(self, adapter: VisualAdapter, inputs: Mapping[str, Any]) -> Outputs:
        """Return the patches of a call's images; the tower does not run."""
        return {"image": read_patches(adapter, inputs)}

    def onward(self, adapter: VisualAdapter, features: Outputs) -> Callable[[Tensor], Tensor]:
        extra = features["image"].extra
        return lambda patches: entries_of(run_tower(adapter, patches, extra))

    def pruned(
        self, adapter: VisualAdapter, features: Outputs, kept: Tensor, counts: Sequence[int]
    ) -> Outputs:
        """Run the tower on the kept patches; removed places hold zeros."""
        return run_tower_on_kept(adapter, features["image"], kept, counts)

    def finish(
        self, adapter: VisualAdapter, visual: VisualTokens, gated: Tensor, repair: Repair
    ) -> Outputs:
        """Run encoder and projector on gated patches, then the Denoiser, with gradient."""
        outputs = run_tower(adapter, gated, visual.outputs["image"].extra)
        return adapter.replace(outputs, visual.blocks, repair(entries_of(outputs)))


def _as_encoded(features: SiteFeatures, tokens: Tensor) -> Outputs:
    """Return projector outputs [I, N, D] in the container of the model's own encoder."""
    own: Any = list(tokens) if features.in_list else tokens
    return {"image": BaseModelOutputWithPooling(pooler_output=own)}


SITES: dict[GateSite, AfterProjector] = {
    "after_projector": AfterProjector(),
    "before_projector": BeforeProjector(),
    "before_encoder": BeforeEncoder(),
}


def _no_projector(adapter: VisualAdapter) -> ConfigError:
    return ConfigError(
        f"site=before_projector: model={type(adapter.model).__name__} "
        f"({adapter.model.config.model_type}) has no projector that takes images of equal "
        "size token by token, or the call brings clips or encoded features; use "
        "site=after_projector"
    )
