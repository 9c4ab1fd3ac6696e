"""Check a model's folder before any weights are read: whole files, in a layout that loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from autoselect.config import ConfigError
from autoselect.files.digest import sha256_of

POINTER = b"version https://git-lfs.github.com/spec/v1"
POINTER_BYTES = 1024
"""Most bytes of a git-lfs pointer file, by its specification."""

ORIGINALS = {
    "LlavaLlamaForCausalLM": "llava-hf (such as llava-hf/llava-1.5-7b-hf)",
    "LlavaMistralForCausalLM": "llava-hf (such as llava-hf/llava-v1.6-mistral-7b-hf)",
    "LlavaQwenForCausalLM": "llava-hf (such as llava-hf/llava-onevision-qwen2-7b-ov-hf)",
    "InternVLChatModel": "OpenGVLab, with -hf at the end (such as OpenGVLab/InternVL3-1B-hf)",
    "MultiModalityCausalLM": "deepseek-community (such as deepseek-community/Janus-Pro-1B)",
}
"""Classes of original code, and whose repositories hold their models for transformers."""


PROCESSOR_FILES = (
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "tokenizer.json"),
    *("special_tokens_map.json", "added_tokens.json", "tokenizer.model", "vocab.json"),
    *("merges.txt", "vocab.txt"),
)
"""Files that decide which pixels and token ids a model gets, by their names in transformers."""


class ModelFilesError(ConfigError):
    """The files of a model are not those of a whole model that transformers can load.

    Args:
        path: folder or hub name of the model.
        found: what is wrong, a sentence without its subject.
        fix: what the user should do.
    """

    def __init__(self, path: str | Path, found: str, fix: str) -> None:
        super().__init__(f"model={path} {found}; {fix}")
        self.found = found
        self.fix = fix


def local_folder(path: str | Path) -> Path | None:
    """Return the folder of a model: `path`, or the cached copy of a hub name, or None."""
    if Path(path).is_dir():
        return Path(path)
    try:
        cached = try_to_load_from_cache(str(path), "config.json")
    except HFValidationError:  # neither a folder nor a hub name
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def processor_digests(path: str | Path) -> dict[str, str] | None:
    """Return the sha256 of each processor file of a model by name; None if it is not here."""
    folder = local_folder(path)
    if folder is None:
        return None
    found = (folder / name for name in PROCESSOR_FILES)
    return {file.name: sha256_of(file) for file in found if file.is_file()}


def has_config(path: str | Path) -> bool:
    """Return True if the `config.json` of a folder or hub name is on this machine."""
    folder = local_folder(path)
    return folder is not None and (folder / "config.json").is_file()


def absent(path: str | Path, reason: str = "") -> ModelFilesError:
    """Return the error for a model without `config.json` on this machine.

    Args:
        path: what was given as a folder or hub name.
        reason: why the hub does not give it.
    """
    whole = "give the folder of a whole transformers model, or a hub name (ORG/NAME)"
    if Path(path).is_dir():
        return ModelFilesError(path, "has no config.json", whole)
    if Path(path).exists():
        return ModelFilesError(path, "is a file", whole)
    try:
        validate_repo_id(str(path))
    except HFValidationError:
        fix = "correct the path, or give a hub name (ORG/NAME)"
        return ModelFilesError(path, "is neither a folder here nor a hub name", fix)
    return ModelFilesError(
        path,
        f"is not a folder here, and the hub does not give it ({reason})",
        f"correct the name, log in with `hf auth login`, or run `hf download {path}` on a machine "
        "with a network and set HF_HUB_OFFLINE=1",
    )


def download_again(path: str | Path) -> str:
    """Return the advice to download all files of a model's folder or hub name."""
    if Path(path).is_dir():
        return f"hf download REPO --local-dir {path}"
    return f"hf download {path} --force-download"


def weight_files(path: str | Path, folder: Path) -> list[Path]:
    """Return the weight files that transformers would load, which may be missing; none if unnamed.

    Raises:
        ModelFilesError: the index of the weight files is damaged.
    """
    for single, index_name in (
        (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
        (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    ):
        index = folder / index_name
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            try:
                values = json.loads(index.read_text(encoding="utf-8"))
                values["metadata"]  # transformers reads it
                return sorted({folder / name for name in values["weight_map"].values()})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelFilesError(
                    path,
                    f"is incomplete: {index_name} is damaged ({type(error).__name__}: {error})",
                    f"download the named file again: {download_again(path)}",
                ) from error
    return []


def check_folder(path: str | Path, folder: Path) -> None:
    """Check that a folder holds a model and not something that stands for one.

    Args:
        path: folder or hub name, for messages.
        folder: the model's folder, or the cached copy of a hub name.

    Raises:
        ModelFilesError: files are git-lfs pointers, there is only an adapter or a projector, or
            there is no `config.json`.
    """
    pointers = sorted(file.name for file in folder.iterdir() if is_pointer(file))
    if pointers:
        raise ModelFilesError(
            path,
            f"holds git-lfs pointers in place of files: {', '.join(pointers)}",
            f"run `git lfs pull` in {folder}, or {download_again(path)}",
        )
    _check_adapter(path, folder)
    _check_projector(path, folder)
    if not (folder / "config.json").is_file():
        raise absent(path)


def check_weight_files(path: str | Path, folder: Path, needed: bool) -> list[Path]:
    """Return the weight files of a model, whole by their headers and sizes.

    Args:
        path: folder or hub name, for messages.
        folder: the model's folder, or the cached copy of a hub name.
        needed: refuse a folder without weights; else return none then.

    Raises:
        ModelFilesError: weights are missing, cut off or damaged.
    """
    files = weight_files(path, folder)
    present = [file for file in files if file.is_file()]
    if present != files and not Path(path).is_dir():
        return []  # transformers downloads the others
    if not present and not needed:
        return []
    if needed and not files:
        raise ModelFilesError(
            path,
            f"is incomplete: it has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}"
            + _other_weights(folder),
            f"download the weights: {download_again(path)}",
        )
    damaged = [problem for file in files if (problem := damage(file))]
    if damaged:
        raise ModelFilesError(
            path,
            f"is incomplete: {'; '.join(damaged)}",
            f"download the named files again: {download_again(path)}",
        )
    return files


def check_layout(path: str | Path, values: Mapping[str, Any]) -> None:
    """Check by `config.json` that transformers' own classes read the model.

    Args:
        path: folder or hub name, for messages.
        values: JSON value of `config.json`.

    Raises:
        ModelFilesError: it is the configuration of original code, outside of transformers.
    """
    names = values.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    foreign = "auto_map" in values and values.get("model_type") not in set(CONFIG_MAPPING)
    llava = "mm_vision_tower" in values or "mm_projector_type" in values
    if not (foreign or llava or name in ORIGINALS):
        return
    where = ORIGINALS.get(name) or (ORIGINALS["LlavaLlamaForCausalLM"] if llava else None)
    raise ModelFilesError(
        path,
        f"is in the layout of its original code ({name or 'own classes'}), which transformers' "
        "classes do not read",
        "give the model in the layout of transformers, "
        + (f"usually found at {where}" if where else "usually found under a name that ends in -hf")
        + ", or convert it with the convert_*_to_hf.py script in transformers' repository",
    )


def damage(path: Path) -> str:
    """Return what is wrong with a weights file, from its header and size, or an empty text."""
    if not path.is_file():
        return f"{path.name} is missing"
    if path.suffix != ".safetensors":
        return "" if path.stat().st_size else f"{path.name} is empty"
    try:
        with safe_open(path, framework="pt"):
            return ""
    except (SafetensorError, OSError) as error:
        size, wanted = path.stat().st_size, _wanted_bytes(path)
        if wanted is not None and size < wanted:
            return f"{path.name} has {size} of {wanted} bytes"
        return f"{path.name} is damaged ({error})"


def _wanted_bytes(path: Path) -> int | None:
    """Return the size that the header of a safetensors file asks for; None if it is damaged."""
    with path.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or start[:1] == b"<":
            return None
        if 8 + length > path.stat().st_size:
            return 8 + length
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for n, entry in header.items() if n != "__metadata__"]
            return int(8 + length + max(ends, default=0))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return None


def is_pointer(path: Path) -> bool:
    """Return True for a small file that names a git-lfs object and does not hold it."""
    if not path.is_file() or path.stat().st_size > POINTER_BYTES:
        return False
    with path.open("rb") as stream:
        return stream.read(len(POINTER)) == POINTER


def _check_adapter(path: str | Path, folder: Path) -> None:
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = "its base model"
    raise ModelFilesError(
        path,
        f"is an adapter (LoRA) for {base}, not a whole model",
        "merge it first: `PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload()` of the "
        "package peft, then save_pretrained of model and processor into one folder",
    )


def _check_projector(path: str | Path, folder: Path) -> None:
    """Refuse a folder of the original LLaVA code that holds nothing but a projector."""
    if (folder / "mm_projector.bin").is_file() and not weight_files(path, folder):
        raise ModelFilesError(
            path,
            "holds only a projector of the original LLaVA code, mm_projector.bin",
            "give the whole model in the layout of transformers, usually found at "
            f"{ORIGINALS['LlavaLlamaForCausalLM']}",
        )


def _other_weights(folder: Path) -> str:
    """Return the weight files that transformers does not load by itself, as part of a message."""
    kinds = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".ckpt")
    names = sorted(file.name for file in folder.iterdir() if file.suffix in kinds)
    if not names:
        return ""
    return f", only {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
