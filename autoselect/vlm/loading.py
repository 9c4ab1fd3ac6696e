"""Loading of a VLM through transformers' own path, with errors that say what is missing."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from autoselect.config import ConfigError


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def load(path: str | Path, dtype: torch.dtype | None, device: torch.device) -> tuple[Any, Any]:
    """Load model and processor of a folder or hub name.

    Raises:
        ConfigError: model, weights or processor are missing, or it is not a VLM.
    """
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model={path} cannot be loaded: {str(error).splitlines()[0]} "
            "Give the folder of a transformers model (with config.json) or a hub name"
        ) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ConfigError(
            f"model={path} is not a vision-language model: its model_type is "
            f"{config.model_type!r}. Give a model that AutoModelForImageTextToText can load"
        )
    processor = load_processor(path)
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype or default_dtype(device)
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model={path} is incomplete: {str(error).splitlines()[0]} "
            "Copy or download the weights again"
        ) from error
    return model.to(device), processor


def load_processor(path: str | Path) -> Any:
    """Load the processor of a folder or hub name.

    Raises:
        ConfigError: it is missing, or needs a package that is not installed.
    """
    try:
        return AutoProcessor.from_pretrained(path)
    except ImportError as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise ConfigError(
            f"model={path}: its processor needs a package that is not installed. {reason.strip()} "
            "Install it; torchvision must be of the build that torch is (docs/backbones.md "
            "has the command)"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model={path} has no processor: {str(error).splitlines()[0]} "
            "Copy processor_config.json and the tokenizer files into it"
        ) from error


def local_folder(path: str | Path) -> Path | None:
    """Return the folder of a model: `path`, or the cached copy of a hub name, or None."""
    if Path(path).is_dir():
        return Path(path)
    cached = try_to_load_from_cache(str(path), "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def weights_digest(path: str | Path) -> str:
    """Return a digest that identifies a model's weights without reading all of them.

    sha256 over `config.json` and over name, size, first and last MiB of every weights file. A hub
    name that was loaded once and a copy of its files in a folder have the same digest.
    """
    folder = local_folder(path)
    if folder is None:
        return str(path)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()
