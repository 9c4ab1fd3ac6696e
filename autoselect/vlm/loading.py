"""Loading of a VLM through transformers' own path, with errors that say what is missing."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
)
from transformers.integrations import is_deepspeed_zero3_enabled

from autoselect.config import ConfigError
from autoselect.config.errors import first_names
from autoselect.files import digest
from autoselect.vlm.families import family_of, placeholder_id
from autoselect.vlm.model_files import (
    ModelFilesError,
    absent,
    check_folder,
    check_layout,
    check_weight_files,
    download_again,
    has_config,
    local_folder,
    weight_files,
)
from autoselect.vlm.processor_fit import check_processor
from autoselect.vlm.text.placeholders import fixed_count
from autoselect.vlm.weight_names import check_loading, check_weight_names, one_line


def default_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def named_dtype(setting: str) -> torch.dtype | None:
    """Return the dtype of the setting `dtype`; None for `auto`, see `default_dtype`."""
    return None if setting == "auto" else getattr(torch, setting)


def load(path: str | Path, dtype: torch.dtype | None, device: torch.device) -> tuple[Any, Any]:
    """Load model and processor of a folder or hub name.

    Raises:
        ConfigError: model, weights or processor are missing or do not fit each other, or it is
            not a VLM.
    """
    config = check_model(path)
    processor = load_processor(path)
    check_processor(path, config, processor)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype or default_dtype(device),
            ignore_mismatched_sizes=True,  # `check_loading` refuses them, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model={path} is incomplete: {str(error).splitlines()[0]} "
            "Copy or download the weights again"
        ) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        # Sizes that do not fit are raised at ZeRO-3 alone; elsewhere they are in `info`.
        reason = " ".join(str(error).splitlines()[1:2]).strip()
        raise ConfigError(
            f"model={path} cannot be split over the ranks as it is loaded: {reason} "
            "Use a DeepSpeed file of stage 2 or less, or the layout of weights that is on the hub"
        ) from error
    model, info = loaded
    check_loading(path, info)
    model = model.to(device)
    check_finite(path, model)
    return model, processor


def check_model(path: str | Path, weights_needed: bool = True) -> Any:
    """Check a model by its files' names, sizes and headers; return its configuration.

    A hub name that is not in the cache is checked by its configuration alone.

    Args:
        path: folder or hub name.
        weights_needed: refuse a folder without weights.

    Raises:
        ConfigError: it is not a whole VLM that transformers' own classes load.
    """
    folder = local_folder(path)
    if folder is None:
        return read_config(path)
    check_folder(path, folder)
    config = read_config(path)
    files = check_weight_files(path, folder, weights_needed)
    if files and not is_deepspeed_zero3_enabled():
        check_weight_names(path, config, files)
    return config


def read_config(path: str | Path) -> Any:
    """Return the configuration of a VLM.

    Raises:
        ConfigError: it is missing, damaged or of original code, or not that of a VLM.
    """
    if Path(path).is_file():
        raise absent(path)
    try:
        values, _ = PretrainedConfig.get_config_dict(path)
        check_layout(path, values)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # a damaged configuration raises anything
        if not has_config(path):
            raise absent(path, one_line(error)) from error
        raise ModelFilesError(
            path,
            f"cannot be loaded: it has no vision-language configuration ({one_line(error)})",
            "give the folder of a transformers model (with config.json) or a hub name",
        ) from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelFilesError(
            path,
            f"is not a vision-language model: its model_type is {config.model_type!r}",
            "give a model that AutoModelForImageTextToText can load",
        )
    return config


def download(path: str | Path) -> None:
    """Download a hub model, unless it is in the cache or `path` is a folder.

    Raises:
        ConfigError: the hub cannot be reached, or does not have the model.
    """
    folder = local_folder(path)
    weights = [] if folder is None else weight_files(path, folder)
    if Path(path).is_dir() or (weights and all(file.is_file() for file in weights)):
        return
    kinds = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]
    try:
        snapshot = Path(snapshot_download(str(path), allow_patterns=kinds))
        if not any(snapshot.glob("*.safetensors")):
            snapshot_download(str(path), allow_patterns=[*kinds, "*.bin"])
    except (OSError, ValueError, HTTPError) as error:
        raise absent(path, one_line(error)) from error


def check_finite(path: str | Path, model: torch.nn.Module) -> None:
    """Check that no weight is NaN or infinite; at ZeRO-3 each rank checks its own part.

    Raises:
        ModelFilesError: one is.
    """
    bad = [name for name, weight in model.named_parameters() if not _is_finite(weight)]
    if bad:
        raise ModelFilesError(
            path,
            f"has {len(bad)} weights with numbers that are not finite ({first_names(bad)})",
            "load it in bfloat16 or float32 if float16 overflows; else get its files again: "
            f"{download_again(path)}",
        )


@torch.no_grad()
def _is_finite(weight: Any) -> bool:
    values = getattr(weight, "ds_tensor", weight)  # the rank's part at ZeRO-3
    if hasattr(values, "__tensor_flatten__"):  # quantised by torchao: numbers and their scales
        parts, _ = values.__tensor_flatten__()
        return all(_is_finite(getattr(values, name)) for name in parts)
    if not values.numel() or values.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return True
    lowest, highest = values.aminmax()  # one pass without a temporary tensor; NaN goes through
    return bool(lowest.isfinite() and highest.isfinite())


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


def fixed_tokens(path: str | Path) -> int | None:
    """Return the visual tokens of every image of a model, or None if images differ.

    Only the configuration and the processor are read, not the weights.

    Raises:
        ConfigError: the model or its processor is not whole, or they do not fit each other.
    """
    config, processor = check_model(path), load_processor(path)
    check_processor(path, config, processor)
    if not family_of(config).fixed_tokens:
        return None
    token = processor.tokenizer.convert_ids_to_tokens(placeholder_id(config, "image"))
    return fixed_count(processor, token)


def weights_digest(path: str | Path) -> str:
    """Return a digest of all weights of a model, see `autoselect.files.digest.weights_digest`.

    A hub name that was loaded once and a copy of its files in a folder have the same digest; a hub
    name that is not in the cache is its own.
    """
    folder = local_folder(path)
    if folder is None:
        return str(path)
    files = [file for file in weight_files(path, folder) if file.is_file()]
    return digest.weights_digest(folder / "config.json", files)
