"""Stock transformers image classifiers of the ViT kind, with patches removed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from autoselect.config import ConfigError
from autoselect.vlm.model_files import ModelFilesError
from autoselect.vlm.weight_names import check_loading

Preprocess = Callable[[list[Image.Image]], Tensor]


def load_classifier(path: str | Path, device: torch.device | str = "cpu") -> tuple[Any, Preprocess]:
    """Return an image classifier in eval mode, and the function from images to its pixel values.

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
        raise ConfigError(
            f"classifier={path} cannot be loaded: {str(error).splitlines()[0]} Give the folder or "
            "hub name of a transformers image classifier with its preprocessor_config.json"
        ) from error
    embedding_layer(model)
    grid(model)

    def preprocess(images: list[Image.Image]) -> Tensor:
        return processor(images=images, return_tensors="pt")["pixel_values"].to(device)

    return model.to(device).eval(), preprocess


def embedding_layer(classifier: Any) -> nn.Module:
    """Return the layer whose output is [B, extra + patches, C], positions added.

    Raises:
        ConfigError: the layer is missing, as in convolutional networks.
    """
    for name, module in classifier.named_modules():
        if name.split(".")[-1] == "embeddings":
            return module
    raise ConfigError(
        f"classifier of type {type(classifier).__name__} has no layer `embeddings`; give a vision "
        "transformer such as ViT, DeiT, DINOv2 or CLIP"
    )


def grid(classifier: Any) -> tuple[int, int]:
    """Return the rows and columns of patches; ConfigError if the configuration lacks the sizes."""
    config = getattr(classifier.config, "vision_config", classifier.config)
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if size is None or patch is None:
        raise ConfigError(
            f"classifier of type {type(classifier).__name__} tells no image_size and patch_size; "
            "give a vision transformer such as ViT, DeiT, DINOv2 or CLIP"
        )
    height, width = (size, size) if isinstance(size, int) else size
    tall, wide = (patch, patch) if isinstance(patch, int) else patch
    return height // tall, width // wide


@contextmanager
def only_patches(classifier: Any, positions: Tensor) -> Iterator[None]:
    """Let the classifier see only the patches at `positions` [B, K] inside the block.

    The embedding layer's output loses the rows of the other patches; class and register tokens
    stay. Position embeddings were added before, so the remaining patches keep their place.
    """
    rows, columns = grid(classifier)

    def drop(module: Any, inputs: Any, output: Tensor) -> Tensor:
        extra = output.shape[1] - rows * columns
        first = torch.arange(extra, device=output.device).expand(len(output), -1)
        kept = torch.cat([first, positions.to(output.device) + extra], dim=1)
        return output.gather(1, kept[..., None].expand(-1, -1, output.shape[2]))

    hook = embedding_layer(classifier).register_forward_hook(drop)
    try:
        yield
    finally:
        hook.remove()
