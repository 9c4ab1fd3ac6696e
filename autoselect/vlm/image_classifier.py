"""Stock transformers image classifiers of the ViT kind, with patches removed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from autoselect.config import ConfigError
from autoselect.vlm.model_files import ModelFilesError, absent, has_config
from autoselect.vlm.patches import pair
from autoselect.vlm.text.pictures import IMAGE_ERRORS, refusal_of
from autoselect.vlm.weight_names import check_loading, one_line

Preprocess = Callable[[list[Image.Image]], Tensor]
EXTRA_TOKENS = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
BLANK_SIZE = 96, 64


def load_classifier(
    path: str | Path, device: torch.device | str = "cpu", whole: bool = False
) -> tuple[Any, Preprocess]:
    """Return an image classifier in eval mode, and the function from images to its pixel values.

    With `whole` its processor resizes a picture where it otherwise crops it, so that the patches
    cover all of it.

    Raises:
        ConfigError: it cannot be loaded, or has no patches that could be removed.
    """
    try:
        loaded: Any = AutoModelForImageClassification.from_pretrained(
            path, ignore_mismatched_sizes=True, output_loading_info=True
        )
        model, info = loaded
        check_loading(path, info)
        processor = AutoImageProcessor.from_pretrained(path)
    except ModelFilesError as error:
        raise ConfigError(f"classifier={path} {error.found}; {error.fix}") from error
    except (OSError, ValueError, SafetensorError) as error:
        if not has_config(path):
            wrong = absent(path, one_line(error))
            raise ConfigError(f"classifier={path} {wrong.found}; {wrong.fix}") from error
        raise ConfigError(
            f"classifier={path} cannot be loaded: {str(error).splitlines()[0]} Give the folder or "
            "hub name of a transformers image classifier with its preprocessor_config.json"
        ) from error

    if whole and getattr(processor, "do_center_crop", False):
        processor.do_center_crop, processor.size = False, processor.crop_size

    def pixels_of(images: Sequence[Image.Image]) -> Tensor:
        return processor(images=list(images), return_tensors="pt")["pixel_values"].to(device)

    def preprocess(images: list[Image.Image]) -> Tensor:
        try:
            return pixels_of(images)
        except IMAGE_ERRORS as error:
            for image in images:
                if (said := refusal_of(processor, pixels_of, (image,))) is not None:
                    raise ConfigError(f"classifier={path}: {said}; leave it out") from error
            raise

    model.to(device).eval()
    check_patches(model, preprocess([Image.new("RGB", BLANK_SIZE)]))
    return model, preprocess


def embedding_layer(classifier: Any) -> nn.Module:
    """Return the layer whose output is [B, extra + patches, C], positions added.

    Raises:
        ConfigError: the layer is missing, as in convolutional networks.
    """
    for name, module in classifier.named_modules():
        if name.split(".")[-1] == "embeddings":
            return module
    raise _refusal(classifier, "has no layer `embeddings`")


def extra_tokens(classifier: Any) -> int:
    """Return how many class and register tokens stand before the patches."""
    layer = embedding_layer(classifier)
    tokens = [getattr(layer, name, None) for name in EXTRA_TOKENS]
    return sum(token.shape[-2] if token.ndim > 1 else 1 for token in tokens if token is not None)


def grid(classifier: Any, pixels: Tensor) -> tuple[int, int]:
    """Return the rows and columns of patches of images as the classifier sees them.

    Args:
        classifier: a vision transformer.
        pixels: pixel values of images of one size, [B, 3, height, width].

    Raises:
        ConfigError: the configuration tells no size of a patch, or pixels come as patches.
    """
    config = getattr(classifier.config, "vision_config", classifier.config)
    patch = getattr(config, "patch_size", None)
    if patch is None or pixels.ndim != 4:
        raise _refusal(
            classifier, "tells no patch_size, or takes other pixels than those of images"
        )
    height, width = pixels.shape[2:]
    tall, wide = pair(patch)
    return height // tall, width // wide


@torch.no_grad()
def check_patches(classifier: Any, pixels: Tensor) -> None:
    """Check on the pixels of one image [1, 3, height, width] that patches can be removed.

    Raises:
        ConfigError: they cannot; the message says why.
    """
    layer, (rows, columns) = embedding_layer(classifier), grid(classifier, pixels)
    extra = extra_tokens(classifier)
    try:
        output = layer(pixels)
        if not isinstance(output, Tensor) or output.ndim != 3:
            raise _refusal(classifier, "has an embedding layer that gives no row per patch")
        if output.shape[1] != extra + rows * columns:
            raise _refusal(
                classifier,
                f"has an embedding layer that gives {output.shape[1]} rows for {rows} x {columns} "
                f"patches and {extra} class and register tokens",
            )
        with only_patches(classifier, torch.zeros(1, 1, dtype=torch.long)):
            classifier(pixels)
    except ConfigError:
        raise
    except Exception as error:  # each model fails on rows it does not expect in its own way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _refusal(classifier, f"does not run on some of its patches ({reason})") from error


def _refusal(classifier: Any, reason: str) -> ConfigError:
    return ConfigError(
        f"classifier of type {type(classifier).__name__} {reason}; give a vision transformer such "
        "as ViT, DeiT, DINOv2 or CLIP"
    )


@contextmanager
def only_patches(classifier: Any, positions: Tensor) -> Iterator[None]:
    """Let the classifier see only the patches at `positions` [B, K] inside the block.

    The embedding layer's output loses the rows of the other patches; class and register tokens
    stay. Position embeddings were added before, so the remaining patches keep their place.
    """
    extra = extra_tokens(classifier)

    def drop(module: Any, inputs: Any, output: Tensor) -> Tensor:
        first = torch.arange(extra, device=output.device).expand(len(output), -1)
        kept = torch.cat([first, positions.to(output.device) + extra], dim=1)
        return output.gather(1, kept[..., None].expand(-1, -1, output.shape[2]))

    with embedding_layer(classifier).register_forward_hook(drop):
        yield
