"""Loading of a VLM and of selectors that fit it."""

import logging
from pathlib import Path
from typing import Any

import torch

from autoselect.config import ConfigError
from autoselect.config.bounds import check_diversity
from autoselect.config.row_names import OWN, SELECTOR, diversity_row, diversity_text
from autoselect.evaluation.identity import digest
from autoselect.files.digest import same_weights
from autoselect.pruning.folder import weights_digest
from autoselect.pruning.selector import Selector
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.vlm import FrozenVLM

logger = logging.getLogger(__name__)


def load_pair(model: str, selector: str, device: str | None = None) -> tuple[FrozenVLM, Selector]:
    """Load a VLM and exactly one selector, see `load_selectors`."""
    vlm, selectors = load_selectors(model, selector, device)
    if len(selectors) > 1:
        raise ConfigError(f"selector={selector} names {len(selectors)} selectors; give one")
    return vlm, selectors[SELECTOR]


def load_selectors(
    model: str, selectors: str, device: str | None = None, diversity: str | None = None
) -> tuple[FrozenVLM, dict[str, Selector]]:
    """Load all on one device and check that the selectors were trained for such tokens.

    Args:
        model: folder or hub name of the VLM.
        selectors: folders or hub names, comma-separated, each optionally as NAME=FOLDER.
        device: device name; None for a GPU if PyTorch sees one, else the CPU.
        diversity: replaces the selectors' own; with several, comma-separated, each selector has a
            row for each.

    Returns:
        The VLM, and the selectors by the name of their row: the first is `autoselect`, the others
        are `autoselect:NAME`, and with further diversities `autoselect:diversity-0.4` and
        `autoselect:NAME-diversity-0.4`.

    Raises:
        ConfigError: one of them cannot be loaded, the widths differ, a name comes twice, or a
            diversity is not a number of 0..1.
    """
    values = None if diversity is None else parse_diversities(diversity)
    folders = selector_folders(selectors)
    where = checked_device(device)
    vlm = FrozenVLM.from_pretrained(model, device=where)
    loaded = {}
    for name, folder in folders.items():
        trained = Selector.from_pretrained(folder, device=where)
        trained.check_width(vlm.width_at(trained.site), str(vlm.name), f"selector={folder}")
        warning = other_weights(vlm, trained)
        if warning:
            logger.warning("%s", warning)
        own = trained.diversity
        first, *further = values or (OWN,)
        trained.diversity = own if first == OWN else float(first)
        loaded[name] = trained
        for value in further:
            weight = own if value == OWN else float(value)
            row = diversity_row(name, value)
            if row in folders:
                raise ConfigError(
                    f"selector={selectors!r} names {row}, as diversity={diversity} names a row of "
                    f"{name}; choose another NAME"
                )
            loaded[row] = trained.like(weight, trained.relevance)
    return vlm, loaded


def parse_diversities(text: str) -> tuple[str, ...]:
    """Read diversities such as `0,0.4,own`: numbers in their shortest form, or `own`.

    Raises:
        ConfigError: they are not different numbers of 0..1, or `own`.
    """
    values = tuple(_written_diversity(value.strip(), text) for value in text.split(","))
    if len(set(values)) < len(values):
        raise ConfigError(f"diversity={text!r} names a value twice; leave one out")
    return values


def _written_diversity(value: str, text: str) -> str:
    try:
        written = diversity_text(value)
    except ValueError:
        raise ConfigError(
            f"diversity={text!r} must be numbers of 0..1 or {OWN}, comma-separated, for example "
            f"{OWN},0"
        ) from None
    if written != OWN:
        check_diversity(float(written))
    return written


def checked_device(device: str | None) -> str:
    """Return the device name; for None a GPU if PyTorch sees one, else `cpu`.

    Raises:
        ConfigError: the device is unknown, or a GPU that PyTorch does not see.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device={device} is not a device; choose cpu, cuda or cuda:1") from None
    seen = torch.cuda.device_count()
    if kind.type == "cuda" and (kind.index or 0) >= seen:
        raise ConfigError(f"device={device}: PyTorch sees {seen} GPUs here; choose another, or cpu")
    return device


def selector_folders(text: str) -> dict[str, str]:
    """Read `A,small=B` as `{"autoselect": "A", "autoselect:small": "B"}`.

    A name holds no slash, so `runs/lr=1` is a folder.

    Raises:
        ConfigError: an empty entry, or a name that comes twice.
    """
    folders: dict[str, str] = {}
    for entry in text.split(","):
        label, folder = _named(entry.strip())
        if not folder:
            raise ConfigError(f"selector={text!r} has an empty entry; write FOLDER or NAME=FOLDER")
        name = f"{SELECTOR}:{label or folder}" if folders else SELECTOR
        if name in folders:
            raise ConfigError(f"selector={text!r} names {name} twice; write NAME=FOLDER")
        folders[name] = folder
    return folders


def _named(entry: str) -> tuple[str, str]:
    """Split `NAME=FOLDER`; the name may be missing, and the folder may hold `=` behind a slash."""
    label, named, folder = entry.partition("=")
    return (label, folder) if named and "/" not in label else ("", entry)


def selector_digest(selector: Selector) -> str:
    """Return a digest of a selector's weights and configuration, wherever it was loaded from."""
    return digest([selector.config, weights_digest(selector.state_dict())])


def shown_name(model: str, vlm: Any) -> str:
    """Return the model's name in reports; the folder of the reference VLM has no telling name."""
    is_reference = Path(model).resolve() == MODEL_FOLDER.resolve()
    return "the reference VLM" if is_reference else str(vlm.name)


def other_weights(vlm: Any, selector: Any) -> str | None:
    """Return a warning if the selector was trained on other weights than this VLM's, else None.

    A selector without a recorded digest gives no warning.
    """
    trained, here = selector.metadata.get("model_digest"), vlm.digest
    if not trained or not here or same_weights(trained, here):
        return None
    name = selector.metadata.get("model_name", "another model")
    return (
        f"the selector was trained on other weights (model_digest {trained[:12]} of {name}) than "
        f"those of {vlm.name} ({here[:12]}); its ranking may not fit this model"
    )
