"""The files of a selector's folder: checks before writing and reading, and tensors that differ."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.files.digest import sha256_of
from autoselect.files.tensors import read_tensors
from autoselect.vlm.model_files import is_pointer

WEIGHTS_FILE, CONFIG_FILE = "selector.safetensors", "config.json"
FORMAT = "autoselect-selector"
KEYS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "version": (str,),
    "width": (int,),
    "scorer": (dict,),
    "diversity": (int, float, list),
    "relevance": (str,),
    "site": (str,),
    "training": (dict,),
    "weights": (str,),
}
"""Keys of `config.json` with the types of their values."""

NEEDED = ("format", "width", "scorer")
"""Keys that selectors of every version have."""


def check_own(folder: Path) -> None:
    """Check that saving a selector into a folder replaces files of a selector only.

    Raises:
        ConfigError: its `config.json` is another one, such as that of a model.
    """
    path = folder / CONFIG_FILE
    if not path.is_file() or (folder / WEIGHTS_FILE).is_file():
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        known = None
    if not isinstance(known, dict) or known.get("format") != FORMAT:
        raise ConfigError(
            f"folder={folder} has a {CONFIG_FILE} that is not a selector's, which saving would "
            "replace; give the selector a folder of its own"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Return the JSON value of a selector's `config.json`, its keys and their types checked.

    Raises:
        ConfigError: a file is missing, unreadable or a git-lfs pointer; it is not JSON or of
            another format; a key is missing, unknown or of another type.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            found = f"has no {name}" if folder.is_dir() else "is not a folder here"
            raise ConfigError(
                f"selector={folder} {found}; give a folder written by save_pretrained or by "
                "training (RUN/selector)"
            )
        if is_pointer(folder / name):
            raise ConfigError(
                f"selector={folder}/{name} is a git-lfs pointer, not the file; run `git lfs pull` "
                "in the folder, or download the selector again"
            )
    where = f"selector={folder}/{CONFIG_FILE}"
    again = "export the selector again, or copy the file from where it is whole"
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{where} cannot be read: {error}; mend that, such as its permissions"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}; {again}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{where} must hold a JSON object, not {type(config).__name__}; {again}")
    if config.get("format") != FORMAT:
        raise ConfigError(f"selector={folder}: format={config.get('format')!r} must be {FORMAT!r}")
    missing = [key for key in NEEDED if config.get(key) is None]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; {again}")
    unknown = [key for key in config if key not in KEYS]
    if unknown:
        raise ConfigError(
            f"{where} has unknown keys {', '.join(unknown)}; it was written by autoselect "
            f"{config.get('version', 'of unknown version')}: install that version, or remove them"
        )
    for key, types in KEYS.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            raise ConfigError(
                f"{where}: {key}={value!r} must be of type "
                f"{' or '.join(kind.__name__ for kind in types)}"
            )
    return config


def choice_digest(folder: Path) -> str:
    """Return a digest of everything that the choice of a stored selector depends on.

    It covers the weights and `config.json` without version and metadata.

    Raises:
        ConfigError: the folder is not that of a selector.
    """
    config = read_config(folder)
    chosen = {key: config.get(key) for key in KEYS if key not in ("version", "training", "weights")}
    text = json.dumps([chosen, sha256_of(folder / WEIGHTS_FILE)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def missing_of_training(folder: Path, tune_images: int) -> str:
    """Return why a training has not finished its selector, or an empty string.

    Args:
        folder: where the training exports its selector.
        tune_images: the setting of the training; unless 0, the search at its end writes a note.
    """
    try:
        training = read_config(folder).get("training") or {}
    except ConfigError as error:
        return str(error)
    if tune_images and not isinstance(training.get("tuning"), dict):
        return (
            f"selector={folder} has no weights of diversity, and tune_images={tune_images} asks "
            "for them; mend what the log of the search names, or set tune_images to 0"
        )
    return ""


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a selector's weights as float32, by which a mixed folder is noticed."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def read_weights(
    folder: Path, shapes: Mapping[str, Sequence[int]], digest: str | None
) -> dict[str, Tensor]:
    """Return the tensors of a selector, float32.

    Args:
        folder: the selector's folder.
        shapes: shape of every tensor by its name, as `config.json` says.
        digest: what `weights_digest` gave when `config.json` was written; None if it does not say.

    Raises:
        ConfigError: the file cannot be read or is damaged; a tensor is missing, unexpected, of
            another shape, not of floating point, or holds numbers that are not finite; the weights
            are not those that `config.json` was written with.
    """
    where = f"selector={folder}/{WEIGHTS_FILE}"
    try:
        weights = read_tensors(folder / WEIGHTS_FILE)
    except OSError as error:
        raise ConfigError(
            f"{where} cannot be read: {error}; mend that, such as its permissions"
        ) from error
    except (SafetensorError, ValueError) as error:
        raise ConfigError(
            f"{where} is damaged: {error}; copy it from where it is whole, or export it again"
        ) from error
    problems = differences(shapes, {name: tensor.shape for name, tensor in weights.items()})
    if problems:
        raise ConfigError(
            f"{where} does not fit its config.json: {'; '.join(problems)}; copy both files from "
            "one selector"
        )
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ConfigError(f"{where}: {name} is of {tensor.dtype}, not of floating point")
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise ConfigError(
            f"{where} has numbers that are not finite in {', '.join(broken[:3])}; take an earlier "
            "selector, or train again"
        )
    if digest is not None and digest != weights_digest(weights):
        raise ConfigError(
            f"{where} is not the one that {CONFIG_FILE} was written with; copy both files from one "
            "selector, or export it again"
        )
    return {name: tensor.to(torch.float32) for name, tensor in weights.items()}


def differences(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]]
) -> list[str]:
    """Return how the names and shapes of two sets of tensors differ, one text for each tensor."""
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    for name, shape in expected.items():
        if name in found and tuple(found[name]) != tuple(shape):
            problems.append(f"{name} has shape {tuple(found[name])}, the model {tuple(shape)}")
    return problems
