"""Compare a model's class with its weight files by names and shapes, without reading weights.

transformers' own loader makes the report, so its renamings, tied weights and unsaved buffers count
as they do in a real loading. It is given tensors of the right shapes that take no memory.
"""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from os.path import commonprefix
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging

from autoselect.config.errors import first_names
from autoselect.vlm.model_files import ORIGINALS, ModelFilesError, download_again

PLACES = {
    "proj": "a projector that was trained alone is usually in a file of its own, such as "
    "mm_projector.bin of the original LLaVA code, or in an adapter",
    "connector": "a connector that was trained alone is usually in a file of its own or an adapter",
    "vision": "training code often leaves a frozen vision tower out; it is in the model that the "
    "training started from",
    "visual": "training code often leaves a frozen vision tower out; it is in the model that the "
    "training started from",
    "lm_head": "if the head is the transposed embedding, config.json must say "
    "tie_word_embeddings: true",
}
"""Where weights usually are, by a part of their names."""


def check_weight_names(path: str | Path, config: Any, files: Iterable[Path]) -> None:
    """Check that the weight files hold every weight of the model's class, and no other.

    Args:
        path: folder or hub name, for messages.
        config: configuration of the model.
        files: its weight files.

    Raises:
        ModelFilesError: a weight is missing, unexpected or of another shape; a file cannot be read;
            the configuration describes a model that cannot be built.
    """
    shapes: dict[str, torch.Size] = {}
    for file in files:
        try:
            shapes |= _shapes(file)
        except Exception as error:  # damaged pickles raise anything
            raise ModelFilesError(
                path,
                f"is incomplete: {file.name} cannot be read ({one_line(error)})",
                f"download the named file again: {download_again(path)}",
            ) from error
    if getattr(config, "quantization_config", None) is not None:
        _check_quantised(path, config, shapes)
        return
    info = _report(path, config, shapes)
    prefix = commonprefix(list(shapes)).rpartition(".")[0] + "."
    if any(info.values()) and prefix != ".":
        names = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
        if not any(_report(path, config, names).values()):
            raise ModelFilesError(
                path,
                f"does not fit its weights: all their names begin with {prefix!r}",
                "remove that from the names, or save the model again with save_pretrained, "
                "unwrapped",
            )
    check_loading(path, info)


def _check_quantised(path: str | Path, config: Any, shapes: Mapping[str, torch.Size]) -> None:
    """Check that every module with weights has some in the files of a quantised model.

    A quantiser stores a weight under names and in shapes of its own, beside the module's name
    (`q_proj.qweight`, `q_proj.weight_packed`), and makes a model of them as it loads. So a module
    of which nothing is in the files is the only fault that their headers show for sure.

    Raises:
        ModelFilesError: there is one.
    """
    config = deepcopy(config)
    del config.quantization_config
    modules = {name.rpartition(".")[0]: shape for name, shape in shapes.items()}
    plain = {f"{module}.weight": shape for module, shape in modules.items()}
    try:
        info = _report(path, config, plain | dict(shapes))
    except ModelFilesError:
        return  # shapes that transformers' conversions do not take
    missing = set(info["missing_keys"]) - {name for name, *_ in info["mismatched_keys"]}
    with torch.device("meta"):
        names = [name for name, _ in _without_initialisation(config)(config).named_parameters()]
    held = {name.rpartition(".")[0] for name in names if name not in missing}
    lost = {name for name in missing if name.rpartition(".")[0] not in held}
    check_loading(path, {"missing_keys": lost, "unexpected_keys": (), "mismatched_keys": ()})


def _report(
    path: str | Path, config: Any, shapes: Mapping[str, torch.Size]
) -> dict[str, set[Any] | list[Any]]:
    """Return what transformers would report on loading weights of such names and shapes."""
    blank = torch.zeros((), dtype=torch.bfloat16)
    try:
        with _quiet():
            _, info = _without_initialisation(config).from_pretrained(
                None,
                config=config,
                state_dict={name: blank.expand(shape) for name, shape in shapes.items()},
                dtype=blank.dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # a damaged configuration raises anything
        raise ModelFilesError(
            path,
            f"cannot be loaded: config.json and weights do not make a model ({one_line(error)})",
            f"copy the config.json that belongs to the weights, or {download_again(path)}",
        ) from error
    return dict(info)


def check_loading(path: str | Path, info: Mapping[str, Any]) -> None:
    """Check what transformers reports with `output_loading_info=True`.

    Raises:
        ModelFilesError: a weight is missing, unexpected or of another shape.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    shapes = sorted(info["mismatched_keys"])
    found = []
    if missing:
        names = first_names(missing)
        found.append(f"{len(missing)} weights of the model are not in its files ({names})")
    if unexpected:
        names = first_names(unexpected)
        found.append(f"{len(unexpected)} weights in its files are not in the model ({names})")
    if shapes:
        name, here, wanted = shapes[0]
        found.append(
            f"{len(shapes)} weights have another shape ({name}: {list(here)} in the file, "
            f"{list(wanted)} in the model of its config.json)"
        )
    if found:
        fix = _fix(path, missing, unexpected, bool(shapes))
        raise ModelFilesError(path, f"does not fit its weights: {'; '.join(found)}", fix)


def one_line(error: Exception) -> str:
    """Return kind and text of an error in one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _fix(path: str | Path, missing: list[str], unexpected: list[str], other_shapes: bool) -> str:
    """Return what to do about weights with these names."""
    if any("mm_projector" in name for name in unexpected):
        return (
            "these are names of the original LLaVA code; give the model in the layout of "
            f"transformers, usually found at {ORIGINALS['LlavaLlamaForCausalLM']}"
        )
    if missing and unexpected:
        return (
            "the weights were saved by another class or version; load them there and write the "
            f"whole model with save_pretrained, or {download_again(path)}"
        )
    if missing:
        usual = next((place for part, place in PLACES.items() if part in missing[0]), "")
        return f"{usual + '; ' if usual else ''}get all files of one model: {download_again(path)}"
    what = "of another size" if other_shapes else "with fewer parts"
    return (
        f"config.json describes a model {what}; copy the config.json that belongs to the weights, "
        f"or {download_again(path)}"
    )


def _shapes(file: Path) -> dict[str, torch.Size]:
    """Return names and shapes of the tensors in a weights file."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as stream:
            slices = {name: stream.get_slice(name) for name in stream.keys()}
            return {name: torch.Size(part.get_shape()) for name, part in slices.items()}
    mapped = zipfile.is_zipfile(file)  # the format before torch 1.6 cannot be mapped
    tensors = torch.load(file, map_location="meta", mmap=mapped, weights_only=True)
    return {name: value.shape for name, value in tensors.items() if isinstance(value, Tensor)}


def _without_initialisation(config: Any) -> Any:
    """Return the model's class for a configuration, without initialisation of missing weights."""
    own: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    changed = {"initialize_weights": lambda self: None, "__module__": own.__module__}
    return type(own.__name__, (own,), changed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bar and its warnings about the weights."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
