"""The multimodal processor of a pruned model: the family's own, with fewer slots for each image.

The family's processor says which tokens stand for an image. Here that sequence is shortened to what
stays, and the full one travels with the image, as one more field that the engine never drops.
"""

import itertools
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.config.extras import extra
from autoselect.pruning.budget import kept_tokens
from autoselect.serving.batches import ENTRY, SHARED
from autoselect.serving.blocks import Block, visual_span
from autoselect.serving.settings import ServingSettings, split_request

with extra("serving"):
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFieldElem,
        MultiModalFlatField,
        MultiModalKwargsItem,
        MultiModalSharedField,
    )
    from vllm.multimodal.processing import BaseMultiModalProcessor, PromptUpdateDetails

BLOCK_FIELD, ROWS_FIELD = "autoselect_block", "autoselect_rows"
KEPT_WITH_PREFIX = MultiModalBatchedField(keep_on_cpu=True)


FamilyProcessor: Any = object
"""The base that the mixin has for type checks; the class beside it is known only in vLLM."""


class PrunedProcessor(FamilyProcessor):
    """Mixin before a family's `BaseMultiModalProcessor`."""

    info: Any
    is_measuring = False

    @cached_property
    def settings(self) -> ServingSettings:
        settings = ServingSettings.of(self.info.ctx.model_config.hf_config)
        assert settings is not None
        return settings

    @cached_property
    def digest(self) -> str:
        return self.settings.digest()

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Return the inputs that memory is measured with; they may pass the model's positions."""
        self.is_measuring = True
        try:
            return super().get_dummy_mm_inputs(*args, **kwargs)
        finally:
            self.is_measuring = False

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a request; a refused one leaves no images in the cache of this process.

        The engine's cache would not have them, as it never sees the request.
        """
        try:
            return super().apply(inputs, timing_ctx)
        except Exception:  # too long, or other marks than images
            if inputs.cache is not None:
                with suppress(ValueError):  # a budget without a meaning, which has no hash
                    for item in itertools.chain.from_iterable(self._get_mm_hashes(inputs).values()):
                        inputs.cache.invalidate(item)
            raise

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        """Write the slots into the prompt; refuse one that passes the positions of the model."""
        ids, places = super()._maybe_apply_prompt_updates(mm_items, mm_res)
        updates = itertools.chain.from_iterable(mm_res.prompt_updates.values())
        removed = sum(alternatives[0].content.removed for alternatives in updates)
        if not self.is_measuring:
            self._check_positions(len(ids), len(ids) + removed)
        return ids, places

    def _check_positions(self, length: int, full_length: int) -> None:
        """Refuse a prompt whose tokens, or those generated after it, lack a position.

        Args:
            length: tokens of the prompt after pruning.
            full_length: tokens before.
        """
        config = self.info.ctx.model_config
        known = getattr(config.hf_config, "autoselect_positions", None)
        if known is None:
            return
        if full_length > known:
            raise ConfigError(
                f"the prompt has {full_length} tokens before pruning, and kept tokens retain "
                f"their positions, of which the model knows {known} (max_position_embeddings); "
                "send fewer or smaller images"
            )
        last = full_length + config.max_model_len - length
        if last > config.hf_text_config.max_position_embeddings:
            raise ConfigError(
                f"with {config.max_model_len} tokens (--max-model-len) the sequence would reach "
                f"position {last}, and the model knows {known}; lower --max-model-len by the "
                f"{full_length - length} tokens that are removed"
            )

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        """Return the identity of each item; it depends on what is kept of it."""
        _, budget = split_request(inputs.hf_processor_mm_kwargs)
        kept = self.digest if budget is None else f"{self.digest}-{budget!r}"
        hashes = super()._get_mm_hashes(inputs)
        return {name: [f"{own}-{kept}" for own in items] for name, items in hashes.items()}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        others, _ = split_request(hf_kwargs)
        return super()._apply_hf_processor_main(mm_items, others)

    def _get_mm_fields_config(self, hf_inputs: Any, hf_kwargs: Mapping[str, object]) -> Any:
        others, _ = split_request(hf_kwargs)
        return super()._get_mm_fields_config(hf_inputs, others)

    def _get_mm_prompt_updates(
        self, mm_items: Any, hf_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> dict[str, list[list[Any]]]:
        """Return the family's prompt updates, shortened; note each block beside its pixels."""
        if mm_items.get_all_counts().get("video") and not self.is_measuring:
            raise ConfigError("clips are not pruned in vLLM; send images, or serve whole clips")
        others, budget = split_request(hf_kwargs)
        budget = self.settings.budget if budget is None else budget
        found = super()._get_mm_prompt_updates(mm_items, others, out_mm_kwargs)
        shortened: dict[str, list[list[Any]]] = {}
        for modality, updates in found.items():
            shortened[modality] = []
            for number, alternatives in enumerate(updates):
                item = out_mm_kwargs[modality][number]
                blocks, own = zip(
                    *(shorten(update.content, budget) for update in alternatives), strict=True
                )
                if any(not torch.equal(block.packed(), blocks[0].packed()) for block in blocks):
                    raise ConfigError(
                        f"{type(self).__name__} has several texts for one {modality}, which "
                        "cannot be pruned; serve this model without a selector"
                    )
                note_block(item, blocks[0])
                shortened[modality].append(
                    [
                        replace(update, content=content)
                        for update, content in zip(alternatives, own, strict=True)
                    ]
                )
        return shortened


@dataclass
class PrunedDetails(PromptUpdateDetails):
    """Prompt text of an item; `removed` counts the tokens that it lacks."""

    removed: int = 0


def shorten(content: PromptUpdateDetails, budget: int | float) -> tuple[Block, PrunedDetails]:
    """Return the block of an item's prompt text, and the text with the block's slots only."""
    ids = list(content.full)
    embeds = [True] * len(ids) if content.is_embed is None else content.is_embed(ids).tolist()
    start, end = visual_span(embeds)
    visual = torch.tensor(embeds[start:end])
    block = Block(torch.tensor(ids[start:end]), visual, kept_tokens(budget, int(visual.sum())))
    full = ids[:start] + [ids[start]] * block.slots + ids[end:]
    is_slot = torch.zeros(len(full), dtype=torch.bool)
    is_slot[start : start + block.slots] = True
    where = None if is_slot.all() else lambda _: is_slot
    return block, PrunedDetails(full, where, len(ids) - len(full))


def note_block(item: MultiModalKwargsItem, block: Block) -> None:
    """Add to an item what the model needs to prune it, and to encode it apart from others."""
    rows = torch.tensor([rows_of(item[key]) for key in sorted(item)])
    item[BLOCK_FIELD] = MultiModalFieldElem(data=block.packed(), field=KEPT_WITH_PREFIX)
    item[ROWS_FIELD] = MultiModalFieldElem(data=rows, field=KEPT_WITH_PREFIX)


def rows_of(element: MultiModalFieldElem) -> tuple[int, int]:
    """Return how many rows of a batched argument are an item's, and in which dimension.

    The number is ENTRY if the item is one entry, and SHARED if all items share the argument.
    """
    field, data = element.field, element.data
    if isinstance(field, MultiModalFlatField):
        return (data.shape[field.dim] if isinstance(data, Tensor) else len(data)), field.dim
    return (SHARED if isinstance(field, MultiModalSharedField) else ENTRY), 0


def pruned_factory(
    factory: Callable[[Any, Any], BaseMultiModalProcessor[Any]],
) -> Callable[[Any, Any], BaseMultiModalProcessor[Any]]:
    """Return a factory of the family's processor that prunes if the model's configuration asks."""

    def build(info: Any, dummy_inputs: Any) -> BaseMultiModalProcessor[Any]:
        processor = factory(info, dummy_inputs)
        if ServingSettings.of(info.ctx.model_config.hf_config) is None:
            return processor
        family = type(processor)
        pruned = type(f"Pruned{family.__name__}", (PrunedProcessor, family), {})
        return pruned(processor.info, processor.dummy_inputs)

    return build
