"""A frozen VLM: model, processor, name and digest, and the adapter that reads its images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError, GateSite
from autoselect.vlm.adapter import PIXELS, VisualAdapter
from autoselect.vlm.families import Family
from autoselect.vlm.loading import load, weights_digest
from autoselect.vlm.processor_fit import check_patch_size
from autoselect.vlm.rasters import raster_of
from autoselect.vlm.sharded import parameters_outside
from autoselect.vlm.sites import SITES, VisualTokens
from autoselect.vlm.text.pictures import IMAGE_ERRORS, refusal_of
from autoselect.vlm.text.placeholders import fixed_count, image_mark
from autoselect.vlm.text.tokens import adds_special_tokens, with_whole_template

THINKING = "enable_thinking"
"""Variable by which the chat templates of many models ask for thoughts before an answer."""


class FrozenVLM:
    """An unmodified transformers model in eval mode, no parameter of which requires a gradient.

    Args:
        model: a `...ForConditionalGeneration` of a family in docs/backbones.md.
        processor: its processor, with a chat template.
        name: the model's name in reports.
        digest: identifies the weights, see `weights_digest`.

    Attributes:
        adapter: encodes its images and rewrites the visual part of its calls.
        num_tokens: N, if every image has as many visual tokens; None if that depends on the image.

    Raises:
        ConfigError: the family is unknown or refused, or the processor lacks `patch_size`.
    """

    def __init__(self, model: Any, processor: Any, name: str, digest: str = "") -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = with_whole_template(processor)
        self.name = name
        self.digest = digest
        self.adapter = VisualAdapter(model)
        self.num_tokens = self._fixed_count()

    def _fixed_count(self) -> int | None:
        if not self.family.fixed_tokens:
            return None
        check_patch_size(self.name, self.processor)
        return fixed_count(self.processor, self.placeholder)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "FrozenVLM":
        """Load a folder or hub name through transformers' own path.

        `dtype` is bfloat16 on accelerators and float32 on CPUs by default.

        Raises:
            ConfigError: the model or its processor is not whole, they do not fit each other, it is
                not a VLM, or its family is unknown or refused.
        """
        model, processor = load(path, dtype, torch.device(device))
        return cls(model, processor, Path(path).name or str(path), weights_digest(path))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def family(self) -> Family:
        return self.adapter.family

    @property
    def width(self) -> int:
        return self.adapter.width

    @property
    def placeholder(self) -> str:
        """Return the text of the token that stands for one visual token."""
        return self.processor.tokenizer.convert_ids_to_tokens(self.adapter.image_token_id)

    @property
    def image_mark(self) -> str:
        """Return the text that marks an image in the processor's input."""
        return image_mark(self.processor, self.placeholder)

    def vision_parameters(self) -> list[torch.nn.Parameter]:
        return parameters_outside(self.model, self.model.get_decoder())

    def pixel_inputs(self, images: list[Image.Image]) -> dict[str, Any]:
        pixels = self.processor.image_processor(images=images, return_tensors="pt")
        return self.to_device(dict(pixels))

    def to_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a call's arguments, tensors on the model's device and in its dtype."""

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            dtype = self.dtype if value.is_floating_point() else value.dtype
            return value.to(self.device, dtype, non_blocking=True)

        return {name: moved(value) for name, value in inputs.items()}

    def inputs(
        self,
        images: Sequence[Sequence[Image.Image]],
        texts: Sequence[str],
        names: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Return everything that `model.generate` needs, padded on the left.

        Args:
            images: images of each row; either every row has images or none has.
            texts: prompt of each row in the model's chat template.
            names: what the images of each row are, for errors; numbers of the rows by default.

        Raises:
            ConfigError: the processor refuses the images of a row.
        """
        given: dict[str, Any] = {"images": [list(row) for row in images]} if images[0] else {}
        if "mm_token_type_ids" in self.adapter.positions.grid_arguments:
            given["return_mm_token_type_ids"] = True  # not by default in Cosmos 3 Edge
        try:
            encoded = self.processor(
                text=list(texts),
                **given,
                padding=True,
                padding_side="left",
                return_tensors="pt",
                add_special_tokens=adds_special_tokens(self.processor.tokenizer, texts[0]),
            )
        except IMAGE_ERRORS as error:
            for number, row in enumerate(images):
                if (said := self.refusal(row)) is not None:
                    name = names[number] if names else f"row {number}"
                    raise ConfigError(f"{name}: {said}; leave it out or resize it") from error
            raise
        return dict(encoded.to(self.device, self.dtype))

    def refusal(self, images: Sequence[Image.Image]) -> str | None:
        """Return what the processor says against the images of a prompt; None if it takes them."""

        def process(images: tuple[Image.Image, ...]) -> None:
            mark = self.image_mark * len(images)
            self.processor(text=[mark], images=[list(images)], return_tensors="pt")

        if not images:
            return None
        return refusal_of(self.processor, process, tuple(images))

    def encode_images(
        self,
        images: Sequence[Image.Image],
        site: GateSite = "after_projector",
        names: Sequence[str] | None = None,
    ) -> VisualTokens:
        """Encode some RGB images, each in a prompt of its own; `names` are those of `inputs`.

        Raises:
            ConfigError: the model has no such gate site, its processor does not fit it, or refuses
                an image.
        """
        marks = [self.image_mark] * len(images)
        inputs = self.inputs([[image] for image in images], marks, names)
        return SITES[site].read(self.adapter, inputs, inputs["input_ids"])

    def grid_of(self, image: Image.Image) -> tuple[int, int] | None:
        """Return the rows and columns of an image's tokens, or None if they are not one raster."""
        blocks = self.encode_images([image]).blocks
        if len(blocks) > 1:
            return None
        return raster_of(len(blocks[0]), self.family.raster, image.size)

    def seen(self, image: Image.Image) -> Image.Image:
        """Return a picture as the vision encoder sees it, after crop, padding and resizing.

        A picture whose pixels reach the encoder in another layout than [1, 3, height, width] was
        resized as a whole, and is returned unchanged.
        """
        inputs = self.inputs([[image]], [self.image_mark])
        values = next((inputs[name] for name in PIXELS["image"] if name in inputs), None)
        if values is None or values.dim() != 4 or values.shape[:2] != (1, 3):
            return image
        values, processor = values[0].float().cpu(), self.processor.image_processor
        if getattr(processor, "do_normalize", True):
            names = ("image_mean", "image_std")
            mean, std = (torch.tensor(getattr(processor, name))[:, None, None] for name in names)
            values = values * std + mean
        pixels = (values.clamp(0, 1) * 255).round().byte()
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def width_at(self, site: GateSite) -> int:
        """Return the channels that are scored at a site, without those of later layers.

        Raises:
            ConfigError: the model does not have the site.
        """
        return SITES[site].width(self.adapter)


def chat(processor: Any, messages: list[dict[str, Any]], generation: bool) -> str:
    """Return the text of a conversation in the model's chat template.

    A model that can think before it answers is asked for direct answers, as training data have.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    direct = {THINKING: False} if THINKING in str(template) else {}
    return processor.apply_chat_template(
        messages, add_generation_prompt=generation, tokenize=False, **direct
    )
