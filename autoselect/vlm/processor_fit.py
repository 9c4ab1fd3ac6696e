"""Check that a model's tokenizer and processor belong to its weights, before weights are read."""

from pathlib import Path
from typing import Any

from PIL import Image

from autoselect.config import ConfigError
from autoselect.vlm.families import family_of, placeholder_id
from autoselect.vlm.model_files import ModelFilesError
from autoselect.vlm.text.placeholders import image_mark

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Towers that take images of one size only, and their class tokens."""

SAME_PATCH = ("llava", "llava_next", "llava_next_video", "mistral3", "video_llava", "vipllava")
"""Families whose processor counts placeholders from the tower's patch size."""

COPY = "copy the processor and tokenizer files that belong to these weights"


def check_processor(path: str | Path, config: Any, processor: Any) -> None:
    """Check a processor against the configuration of its model.

    Args:
        path: folder or hub name, for messages.
        config: configuration of the model.
        processor: what `AutoProcessor` returned.

    Raises:
        ModelFilesError: the tokenizer or the image processor is missing; token ids exceed the
            embedding; another token stands for images; patches or images have another size.
        ConfigError: the family is refused or unknown.
    """
    for part, files in (
        ("tokenizer", "tokenizer.json and tokenizer_config.json"),
        ("image_processor", "preprocessor_config.json or processor_config.json"),
    ):
        if getattr(processor, part, None) is None:
            found = f"has a processor without {part} (only {type(processor).__name__})"
            raise ModelFilesError(path, found, f"copy {files} into the folder")
    _check_vocabulary(path, config, processor.tokenizer)
    _check_patches(path, config, processor)
    if family_of(config).fixed_tokens:
        check_patch_size(path, processor)
    _check_blank_image(path, config, processor)


def check_patch_size(path: str | Path, processor: Any) -> None:
    """Check that a processor of a family with fixed tokens can count the patches of an image.

    Raises:
        ConfigError: it has no `patch_size`.
    """
    if getattr(processor, "patch_size", None) is None:
        raise ConfigError(
            f"model={path}: its processor has no patch_size, so it cannot write the "
            "placeholders of an image; set patch_size, num_additional_image_tokens and "
            "vision_feature_select_strategy in processor_config.json, or copy the processor's "
            "files of the model again"
        )


def _check_vocabulary(path: str | Path, config: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer whose largest id is beyond the embedding."""
    rows = config.get_text_config().vocab_size
    token, number = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1], default=("", -1))
    if number >= rows:
        raise ModelFilesError(
            path,
            f"has a tokenizer with ids up to {number} ({token!r}), but the embedding has "
            f"vocab_size={rows} rows",
            f"{COPY}; if tokens were added, resize the embedding with resize_token_embeddings and "
            "save the model again",
        )


def _check_patches(path: str | Path, config: Any, processor: Any) -> None:
    """Refuse sizes of patches that differ between the processor and the vision tower."""
    vision, images = getattr(config, "vision_config", None), processor.image_processor
    pairs = []
    if config.model_type in SAME_PATCH:
        pairs.append(("patch_size", processor, "patch_size"))
    if hasattr(images, "merge_size"):
        pairs += [
            ("patch_size", images, "patch_size"),
            ("merge_size", images, "spatial_merge_size"),
            ("temporal_patch_size", images, "temporal_patch_size"),
        ]
    for name, holder, other in pairs:
        own, tower = getattr(holder, name, None), getattr(vision, other, None)
        if isinstance(own, int) and isinstance(tower, int) and own != tower:
            raise ModelFilesError(
                path,
                f"has a processor with {name}={own}, but its vision tower has {other}={tower}",
                COPY,
            )


def _check_blank_image(path: str | Path, config: Any, processor: Any) -> None:
    """Process a blank image, then compare its pixels and placeholders with the vision tower's."""
    number = placeholder_id(config, "image")
    if number is None:
        return  # the adapter refuses such a model
    token = processor.tokenizer.convert_ids_to_tokens(number)
    blank, mark = Image.new("RGB", (64, 64)), image_mark(processor, token)
    if token is None:
        raise ModelFilesError(
            path,
            f"has image_token_id={number} in config.json, which its tokenizer does not know",
            COPY,
        )
    try:
        output = processor(images=[[blank]], text=[mark], return_tensors="pt")
    except Exception:  # it takes images in another way; the first batch shows whether it fits
        return
    count = int((output["input_ids"] == number).sum())
    if not count:
        raise ModelFilesError(
            path,
            f"has image_token_id={number} ({token!r}) in config.json, but its processor writes "
            f"other tokens for an image ({mark!r}, ids {output['input_ids'][0].tolist()[:4]})",
            COPY,
        )
    vision = getattr(config, "vision_config", None)
    if getattr(vision, "model_type", None) not in CLASS_TOKENS or "pixel_values" not in output:
        return
    assert vision is not None
    height, width = output["pixel_values"].shape[-2:]
    if (height, width) != (vision.image_size, vision.image_size):
        raise ModelFilesError(
            path,
            f"has a processor that makes images of {height} x {width} pixels, but its vision tower "
            f"takes image_size={vision.image_size}",
            COPY,
        )
    if config.model_type in ("llava", "vipllava"):
        _check_count(path, config, count)


def _check_count(path: str | Path, config: Any, count: int) -> None:
    """Refuse another number of placeholders than the tokens that the tower makes of an image."""
    vision = config.vision_config
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    made = (vision.image_size // vision.patch_size) ** 2 + CLASS_TOKENS[vision.model_type]
    made -= strategy == "default"
    if count != made:
        raise ModelFilesError(
            path,
            f"has a processor that writes {count} placeholders for an image, but its vision tower "
            f"makes {made} tokens",
            "correct patch_size, num_additional_image_tokens and vision_feature_select_strategy "
            "in processor_config.json, or copy the processor's files of the model again",
        )
