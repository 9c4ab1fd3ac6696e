"""One adapter for every family, on the public interface of transformers.

    outputs = adapter.encode(inputs)                  call the model's own get_image_features
    blocks  = adapter.blocks(input_ids, outputs)      find each image in the prompt
    tokens, mask = adapter.tokens(blocks, outputs)    read what a scorer or a gate works on
    adapter.prune(inputs, outputs, plan, kept)        make the call with fewer visual tokens
    adapter.replace(outputs, blocks, tokens)          make it with other visual tokens

The results are arguments of the stock `forward`. Features enter through `mm_encoder_outputs`, so
the family's own code (later layers, masks) handles the remaining tokens. This module does not
choose tokens.

Dimension letters: B rows, T prompt tokens, S tokens that stay, M placeholders of the whole batch, I
images, N visual tokens of one image, K kept tokens of all images, D width, L later layers
(deepstack).
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from autoselect.config import ConfigError
from autoselect.vlm.blocks import Block, find_all_blocks
from autoselect.vlm.clips import COMPRESSION, clip_frames
from autoselect.vlm.columns import Columns, PrunePlan, take_logit_positions
from autoselect.vlm.contract import check_contract
from autoselect.vlm.families import (
    FAMILIES,
    family_of,
    placeholder_id,
    token_width,
)
from autoselect.vlm.features import (
    compressed,
    entry_sizes,
    feature_matrix,
    keep_features,
    prompt_features,
    with_features,
)
from autoselect.vlm.held import Held
from autoselect.vlm.host import read
from autoselect.vlm.offloaded import weights_at_hand
from autoselect.vlm.positions import Positions
from autoselect.vlm.release import check_release, named_as_now
from autoselect.vlm.token_rows import TokenRows

MODALITIES = ("image", "video")
PIXELS = {
    "image": ("pixel_values", "pixel_values_images"),
    "video": ("pixel_values_videos",),
}
PROJECTORS = ("multi_modal_projector", "connector", "aligner")
PIXEL_NAMES = frozenset(name for names in PIXELS.values() for name in names)
FILL_PER_TOKEN = {
    "attention_mask": 0,
    "position_ids": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "moe_mm_token_type_ids": 0,
    "labels": -100,
}


class VisualAdapter:
    """Reads and rewrites the visual part of a call of an unmodified transformers model.

    Args:
        model: the model.
        keep_alive: whether the adapter alone keeps the model from being freed.

    Raises:
        ConfigError: not a transformers model, an untested transformers, or an unsupported family.
    """

    def __init__(self, model: Any, keep_alive: bool = True) -> None:
        if not isinstance(model, PreTrainedModel):
            raise ConfigError(
                f"model={type(model).__name__} is not a transformers model; give the model itself: "
                "model.get_base_model() of PEFT, model.module of DataParallel, model._orig_mod of "
                "torch.compile; the wrapper may be used afterwards"
            )
        self.family = family_of(model.config)
        check_release(model)
        self._held = Held(model)
        self.text_config = model.config.get_text_config()
        self._kept_alive = model if keep_alive else None
        self._arguments = tuple(inspect.signature(type(model).forward).parameters)[1:]
        self._encoder_arguments = {
            modality: tuple(n for n in inspect.signature(encoder).parameters if n != "kwargs")
            for modality in MODALITIES
            if (encoder := getattr(model.base_model, f"get_{modality}_features", None)) is not None
        }
        self.positions = Positions(model.base_model, self.family.first_position)
        kinds = {"image": "image", "video": self.family.clip_token}
        self.token_ids = {
            modality: token
            for modality, kind in kinds.items()
            if (token := placeholder_id(model.config, kind)) is not None
        }
        if "image" not in self.token_ids:
            raise ConfigError(
                f"model={type(model).__name__} ({model.config.model_type}) has no image token in "
                "its configuration; choose a model that puts image features into the language "
                "model's sequence"
            )
        # For padding: a token that is not a placeholder.
        self._text_token = next(t for t in range(3) if t not in self.token_ids.values())
        if model.config.model_type not in FAMILIES:
            on_grid = self.positions.on_grid
            check_contract(model, self.token_ids["image"], self.width, on_grid)

    @property
    def model(self) -> Any:
        return self._held.module

    def check_own(self, model: Any) -> None:
        """Raise ConfigError if `model` is a replica of the adapter's model."""
        self._held.check(model)

    @property
    def base(self) -> Any:
        """Return the model without its head."""
        return self.model.base_model

    @property
    def width(self) -> int:
        """Return D, the channels of a visual token: of a projector output, except in Llama 4."""
        return token_width(self.model.config)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a call's arguments by name."""
        return named_as_now({**dict(zip(self._arguments, args, strict=False)), **kwargs})

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        """Return True if a call brings pixels or encoded features."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        return any(inputs.get(name) is not None for name in PIXEL_NAMES) or any(
            encoded.get(modality) is not None for modality in MODALITIES
        )

    def encode(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model's own encoders on the pixels of a call; return their outputs by modality.

        Features that are in `mm_encoder_outputs` already are returned as they are.
        """
        outputs = dict(inputs.get("mm_encoder_outputs") or {})
        for modality in MODALITIES:
            name = next((n for n in PIXELS[modality] if inputs.get(n) is not None), None)
            if name is None:
                continue
            known = self._encoder_arguments.get(modality)
            if known is None:
                outputs[modality] = self.base.get_image_features(inputs[name], return_dict=True)
                continue
            encoder = getattr(self.base, f"get_{modality}_features")
            arguments = {n: inputs[n] for n in known if inputs.get(n) is not None}
            with weights_at_hand(self.base):
                outputs[modality] = encoder(**arguments, return_dict=True)
        found = {modality: output for modality, output in outputs.items() if output is not None}
        for output in found.values():
            if output.pooler_output is not (first := prompt_features(output)):
                output["pooler_output"] = first
        if (kept := inputs.get(COMPRESSION)) is not None and "video" in found:
            found["video"] = compressed(found["video"], kept)
        return found

    def blocks(
        self,
        input_ids: Tensor | np.ndarray,
        outputs: Mapping[str, Any],
        lengths: Sequence[int] | None = None,
    ) -> list[Block]:
        """Find every image and clip of a batch: images first, in order of appearance.

        Args:
            input_ids: prompts with all placeholders, [B, T]; a tensor of a device is read.
            outputs: encoder outputs by modality.
            lengths: visual tokens of each image; None to apply the family's rule.

        Raises:
            ConfigError: placeholders are missing, or their number differs from that of the
                features.
        """
        ids = input_ids if isinstance(input_ids, np.ndarray) else read([input_ids])[0]
        return find_all_blocks(ids, self.token_ids, self.entries(outputs), self.family, lengths)

    @staticmethod
    def entries(outputs: Mapping[str, Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Return the visual tokens of each entry of the features, by modality."""
        return tuple((name, entry_sizes(output.pooler_output)) for name, output in outputs.items())

    @property
    def image_token_id(self) -> int:
        """Return the token id of the placeholder of one visual token."""
        return self.token_ids["image"]

    @property
    def projector(self) -> torch.nn.Module | None:
        """Return the module between vision tower and language model; None if none is named."""
        found = (getattr(self.base, name, None) for name in PROJECTORS)
        return next((module for module in found if module is not None), None)

    def is_image(self, input_ids: Tensor) -> Tensor:
        """Return True at placeholders of images and clips, [B, T]."""
        tokens = torch.tensor(list(self.token_ids.values()), device=input_ids.device)
        return torch.isin(input_ids, tokens)

    def clip_frames(self, inputs: Mapping[str, Any]) -> Tensor | list[int] | None:
        """Return the frames of every clip as the language model sees them, or None if unknown."""
        return clip_frames(inputs, self.model.config, self.family.merges_frames)

    def tokens(
        self, blocks: Sequence[Block], outputs: Mapping[str, Any], later: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return visual tokens [I, N, D] and a mask of the real ones, [I, N]; None if all are real.

        With `later`, the channels that the family adds in L later layers follow each token's own,
        [I, N, (1 + L) D]. A gate in training has to cover them, or the image gets past it.
        """
        rows = TokenRows.of(blocks, self.entries(outputs))
        return rows.take(self.features(outputs, later))

    @staticmethod
    def features(outputs: Mapping[str, Any], later: bool = False) -> Tensor:
        """Return the visual tokens of all modalities as one matrix, [M, D]; `later` as above."""
        matrices = [feature_matrix(output, later) for output in outputs.values()]
        return matrices[0] if len(matrices) == 1 else torch.cat(matrices)

    def replace(
        self, outputs: Mapping[str, Any], blocks: Sequence[Block], tokens: Tensor
    ) -> dict[str, Any]:
        """Return `outputs` with other visual tokens, for `mm_encoder_outputs` of stock `forward`.

        Args:
            outputs: encoder outputs by modality.
            blocks: all blocks of the batch, I of them.
            tokens: one row per block, [I, N, D] or [I, N, (1 + L) D], with gradient; padded at the
                end. Given D channels only, those of later layers stay unchanged.
        """
        pieces: dict[str, list[Tensor]] = {modality: [] for modality in outputs}
        for block, row in zip(blocks, tokens, strict=True):
            pieces[block.modality].append(row[: len(block)])
        return {
            modality: with_features(output, torch.cat(pieces[modality]))
            for modality, output in outputs.items()
        }

    def prune(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], plan: PrunePlan, kept: Tensor
    ) -> tuple[dict[str, Any], Columns]:
        """Return the call without removed tokens, and the columns of the prompt that stay.

        Args:
            inputs: arguments of `forward`; `position_ids`, if given, are those of the full prompt.
            outputs: encoder outputs by modality.
            plan: what stays of the prompt.
            kept: positions of kept tokens, see `PrunePlan.spread`, [K].

        Raises:
            ConfigError: the attention mask is not of shape [B, T].
        """
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        if mask is not None and getattr(mask, "shape", None) != ids.shape:
            shape = f"shape {list(mask.shape)}" if hasattr(mask, "shape") else type(mask).__name__
            raise ConfigError(
                f"attention_mask of {shape} cannot be pruned; give one of shape "
                f"{list(ids.shape)}, or none"
            )
        columns = plan.spread(kept if kept.device == ids.device else kept.to(ids.device))
        pruned = {name: value for name, value in inputs.items() if value is not None}
        for name, fill in FILL_PER_TOKEN.items():
            if name in pruned and name != "attention_mask":
                pruned[name] = columns.take(pruned[name], fill)
        pruned["input_ids"] = columns.take(ids, self._text_token)
        pruned["attention_mask"] = columns.mask(mask)
        if isinstance(wanted := pruned.get("logits_to_keep"), Tensor):
            pruned["logits_to_keep"] = take_logit_positions(wanted, columns.numbers)
        left = {
            modality: keep_features(outputs[modality], index)
            for modality, index in plan.by_modality(columns.tokens).items()
            if len(index)
        }
        return self.with_outputs(pruned, left), columns

    def with_outputs(self, inputs: Mapping[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
        """Return a call of the stock `forward` with encoder outputs in the place of its pixels."""
        dropped = {*PIXEL_NAMES, COMPRESSION}
        rest = {name: value for name, value in inputs.items() if name not in dropped}
        return {**rest, "mm_encoder_outputs": outputs}
