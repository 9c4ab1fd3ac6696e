"""A pruned model: the family's own vLLM class, whose language model sees fewer visual tokens.

    embed_multimodal            encode, score, keep K tokens of each image; offsets behind them
    get_mrope_input_positions   positions of the full prompt for text; of its block for each slot
    embed_input_ids             cut the offsets off and remember them for this step
    forward                     position of a slot = position of its block + offset

vLLM computes the positions of a request itself, except for models with M-RoPE, which are asked. So
every pruned model is declared one; families with one coordinate use only the first.

Dimension letters: M tokens of a block, N visual tokens, K that stay, M' slots, P coordinates of a
position, T tokens of a step, D channels.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from autoselect.config.extras import extra
from autoselect.pruning.selector import Selector
from autoselect.serving import BLOCK
from autoselect.serving.batches import some_images, sub_batches
from autoselect.serving.blocks import (
    Block,
    full_prompt,
    inflated_columns,
    with_offsets,
    without_offsets,
)
from autoselect.serving.processor import BLOCK_FIELD, ROWS_FIELD, pruned_factory
from autoselect.serving.settings import ServingSettings
from autoselect.vlm.projectors import projector_inputs

with extra("serving"):
    from vllm.logger import init_logger
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFeatureSpec,
        MultiModalFieldElem,
        MultiModalKwargsItem,
        PlaceholderRange,
    )
    from vllm.multimodal.utils import copy_mm_embedding_modality
    from vllm.transformers_utils.config import uses_mrope

logger = init_logger("vllm.autoselect")
ROWS_OF_POSITIONS = 3
"""Rows of vLLM's buffer of M-RoPE positions."""

TOWER = re.compile(r"^((?:model\.)?vision_tower\.)(?!vision_model\.)")


FamilyModel: Any = object
"""The base that the mixin has for type checks; the class beside it is known only in vLLM."""


class PrunedModel(FamilyModel):
    """Mixin before a family's class; without settings in the configuration it does nothing."""

    supports_mrope = True
    settings: ServingSettings | None
    selector: Selector

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        hf_config = vllm_config.model_config.hf_config
        self.settings = ServingSettings.of(hf_config)
        if self.settings is None:
            return
        self.coordinates = 3 if uses_mrope(hf_config.get_text_config()) else 1
        device = torch.device(vllm_config.device_config.device)
        # Not registered as a module: vLLM would look for its weights among the model's. As buffers
        # they are restored after vLLM's sleep, whose second level discards all but buffers.
        object.__setattr__(self, "selector", self.settings.load(device))
        if self.selector.site == "before_projector":
            check_width(self.settings, self.selector, self.multi_modal_projector)
        for name, weight in self.selector.state_dict().items():
            self.register_buffer(f"{BLOCK}_{name.replace('.', '_')}", weight, persistent=False)
        scheduler, compilation = vllm_config.scheduler_config, vllm_config.compilation_config
        self.most_unpruned = scheduler.max_num_encoder_input_tokens
        tokens = max(scheduler.max_num_batched_tokens, compilation.max_cudagraph_capture_size or 0)
        shape = (ROWS_OF_POSITIONS, tokens + 1)
        self.slot_offsets = torch.zeros(shape, dtype=torch.int64, device=device)
        self.true_positions = torch.zeros(shape, dtype=torch.int64, device=device)
        logger.info(
            "autoselect: %s keeps %s visual tokens of each image, selector %s (%s)",
            type(self).__name__,
            self.settings.budget,
            self.settings.selector,
            self.settings.digest(),
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the weights by the names that vLLM has for those of CLIP and SigLIP towers."""
        if self.settings is not None and hasattr(
            getattr(self, "vision_tower", None), "vision_model"
        ):
            weights = with_older_names(weights)
        return super().load_weights(weights)

    @torch.no_grad()
    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return for each image the embeddings of its slots with their offsets, [M', D + ...]."""
        packed, rows = kwargs.pop(BLOCK_FIELD, None), kwargs.pop(ROWS_FIELD, None)
        if self.settings is None or packed is None:
            return super().embed_multimodal(**kwargs)
        blocks = [Block.unpacked(own) for own in packed]
        sizes = [int(block.visual.sum()) for block in blocks]
        found: list[Tensor] = []
        for part, arguments in sub_batches(kwargs, rows, sizes, self.most_unpruned):
            features, scored = self._encode(arguments, sizes[part])
            for number, kept in enumerate(self._choose(scored, blocks[part])):
                image = part.start + number
                own = some_images(kwargs, rows, slice(image, image + 1))
                found.append(self._fill_slots(blocks[image], features[number], kept, own))
        return found

    def _encode(
        self, arguments: Mapping[str, Any], sizes: Sequence[int]
    ) -> tuple[list[Tensor], Sequence[Tensor]]:
        """Return the projector outputs of each image [N, D], and what the Scorer reads [N, C].

        Args:
            arguments: those of the family's `embed_multimodal`.
            sizes: N of each image in its prompt.
        """
        if self.selector.site == "after_projector":
            features = list(super().embed_multimodal(**arguments))
            # Behind the outputs may be deepstack features.
            scored: Sequence[Tensor] = [own[:, : self.selector.width] for own in features]
        else:
            with projector_inputs(self.multi_modal_projector) as seen:
                features = list(super().embed_multimodal(**arguments))
            if len(seen) != 1:
                raise RuntimeError(f"{type(self).__name__} ran its projector {len(seen)} times")
            inputs = seen[0][0]
            scored = inputs.reshape(-1, inputs.shape[-1]).split([len(own) for own in features])
        found = [len(own) for own in features]
        if found != list(sizes):
            raise RuntimeError(
                f"{type(self).__name__} encoded {found} tokens for images with {list(sizes)} in "
                "their prompts"
            )
        return features, scored

    def _choose(self, scored: Sequence[Tensor], blocks: Sequence[Block]) -> list[Tensor]:
        """Return the positions that stay among the N tokens of each image, int64, [K] each.

        `scored` has what the Scorer reads of each image, [N, C].
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for number, (own, block) in enumerate(zip(scored, blocks, strict=True)):
            alike.setdefault((len(own), block.kept), []).append(number)
        kept: dict[int, Tensor] = {}
        for (count, stay), numbers in alike.items():
            if stay == count:
                kept |= {n: torch.arange(count, device=scored[n].device) for n in numbers}
                continue
            tokens = torch.stack([scored[n] for n in numbers])
            chosen = self.selector.choose(self.selector.score(tokens), tokens, stay)
            kept |= dict(zip(numbers, chosen, strict=True))
        return [kept[number] for number in range(len(blocks))]

    def _fill_slots(
        self, block: Block, features: Tensor, kept: Tensor, arguments: Mapping[str, Any]
    ) -> Tensor:
        """Return the embeddings of an image's slots with their offsets behind them."""
        places = block.places(kept)
        if block.slots == block.kept:
            rows = features[kept]
        else:
            visual = block.visual.to(places.device)[places]
            text = super().embed_input_ids(block.ids.to(places.device)[places[~visual]])
            rows = features.new_zeros(len(places), features.shape[1])
            rows[~visual, : text.shape[1]] = text.to(rows)
            rows[visual] = features[kept]
        if self.coordinates == 1:
            return with_offsets(rows, places[None])
        positions = self._positions_of(block, arguments).to(places.device)
        return with_offsets(rows, positions[:, places] - positions[:, :1])

    def _positions_of(self, block: Block, arguments: Mapping[str, Any]) -> Tensor:
        """Return the M-RoPE positions of an image whose block is the whole prompt, [P, M]."""
        field = MultiModalBatchedField()
        item = MultiModalKwargsItem(
            {
                name: MultiModalFieldElem(data=value[0], field=field)
                for name, value in arguments.items()
            }
        )
        modality = "video" if "video_grid_thw" in arguments else "image"
        feature = MultiModalFeatureSpec(item, modality, "", PlaceholderRange(0, len(block.ids)))
        positions, _ = super().get_mrope_input_positions(block.ids.tolist(), [feature])
        return positions

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Return the positions of a prompt [3, columns], and what generated tokens add to theirs.

        Text has the position that it has before pruning; a slot that of its block's first token.
        """
        if self.settings is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)
        features = sorted(mm_features, key=lambda feature: feature.mm_position.offset)
        blocks = [(first_slot(own), Block.unpacked(own.data[BLOCK_FIELD].data)) for own in features]
        columns = inflated_columns(len(input_tokens), blocks)
        full = full_prompt(input_tokens, blocks)
        if self.coordinates == 1:
            positions, delta = torch.arange(len(full)).expand(ROWS_OF_POSITIONS, -1), 0
        else:
            whole = [
                replace(own, mm_position=PlaceholderRange(int(columns[start]), len(block.ids)))
                for own, (start, block) in zip(features, blocks, strict=True)
            ]
            positions, delta = super().get_mrope_input_positions(full, whole)
        return positions[:, columns], delta + len(full) - len(input_tokens)

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Any = None
    ) -> Tensor:
        """Return the embeddings of a step; keep the offsets of its slots for `forward`."""
        if self.settings is None:
            return super().embed_input_ids(
                input_ids, multimodal_embeddings, is_multimodal=is_multimodal
            )
        self.slot_offsets.zero_()
        rows, offsets = [], []
        for own in multimodal_embeddings or ():
            embeddings, differences = without_offsets(own, self.coordinates)
            rows.append(copy_mm_embedding_modality(own, embeddings))
            offsets.append(differences)
        if rows:
            slots = is_multimodal.nonzero().flatten().to(self.slot_offsets.device)
            self.slot_offsets[: self.coordinates, slots] = torch.cat(offsets, dim=1)
        return super().embed_input_ids(input_ids, rows, is_multimodal=is_multimodal)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model with the true position of every slot."""
        if self.settings is not None:
            # Into a buffer: captured graphs read positions from a fixed address.
            count = positions.shape[-1]
            moved = self.true_positions[:, :count]
            torch.add(positions, self.slot_offsets[:, :count], out=moved)
            positions = moved if self.coordinates > 1 else moved[0]
        return super().forward(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds, **kwargs
        )


def check_width(settings: ServingSettings, selector: Selector, projector: Any) -> None:
    """Raise ConfigError if a selector's width is not that of the inputs of vLLM's projector."""
    names = ("input_size", "in_features")  # of vLLM's linear layers, and of PyTorch's
    sizes = (getattr(part, name, None) for part in projector.modules() for name in names)
    width = next(size for size in sizes if size is not None)
    selector.check_width(width, "the model (site before_projector)", settings.shown)


def with_older_names(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield a tower's weights with `vision_model` in their names.

    Checkpoints that transformers 5.2 and later wrote leave it out.
    """
    for name, own in weights:
        yield TOWER.sub(r"\1vision_model.", name), own


def first_slot(feature: MultiModalFeatureSpec) -> int:
    """Return the column of an image's first slot; text before it may belong to the image."""
    place = feature.mm_position
    return (
        place.offset
        if place.is_embed is None
        else place.offset + int(place.is_embed.int().argmax())
    )


def pruned_class(family: Any) -> type:
    """Return the class that vLLM builds in place of a family's own."""
    factories = replace(
        family._processor_factory, processor=pruned_factory(family._processor_factory.processor)
    )
    return type(
        family.__name__,
        (PrunedModel, family),
        {"_processor_factory": factories, "__module__": __name__},
    )
