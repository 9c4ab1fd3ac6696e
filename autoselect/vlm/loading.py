"""Loading a VLM through transformers' own path, with errors that say what is missing."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from autoselect.config import ConfigError


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on accelerators, float32 on CPUs."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def load(path: str | Path, dtype: torch.dtype | None, device: torch.device) -> tuple[Any, Any]:
    """Model and processor of a folder or a hub name; arguments and errors as `FrozenVLM`."""
    try:
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model={path} cannot be loaded: {str(error).splitlines()[0]} "
            "Give the folder of a transformers model (with config.json) or a hub name"
        ) from error
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype or default_dtype(device)
        )
    except ValueError as error:
        raise ConfigError(
            f"model={path} is no vision-language model: {str(error).splitlines()[0]} "
            "Give a model that AutoModelForImageTextToText can load"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"model={path} is incomplete: {str(error).splitlines()[0]} "
            "Copy or download the weights again"
        ) from error
    try:
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model={path} has no processor: {str(error).splitlines()[0]} "
            "Copy processor_config.json and the tokenizer files into it"
        ) from error
    return model.to(device), processor


def weights_digest(path: str | Path) -> str:
    """What identifies a model's weights without reading all of them.

    For a folder: sha256 over `config.json` and over name, size, first and last MiB of every weights
    file. For a hub name: its commit.
    """
    folder = Path(path)
    if not folder.is_dir():
        return str(getattr(AutoConfig.from_pretrained(path), "_commit_hash", None) or path)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()
