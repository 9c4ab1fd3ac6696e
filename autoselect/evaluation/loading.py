"""A VLM and a selector that fit each other."""

import logging
from pathlib import Path
from typing import Any

import torch

from autoselect.config import ConfigError
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.selector import Selector
from autoselect.vlm import FrozenVLM

logger = logging.getLogger(__name__)


def load_pair(model: str, selector: str, device: str | None = None) -> tuple[FrozenVLM, Selector]:
    """Load both on one device and check that the selector was trained for such tokens.

    Args:
        model: folder or hub name of the VLM.
        selector: folder of the selector.
        device: a GPU where there is one by default.

    Raises:
        ConfigError: one of them cannot be loaded, or the widths differ.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    vlm = FrozenVLM.from_pretrained(model, device=where)
    trained = Selector.from_pretrained(selector, device=where)
    check_width(vlm, trained, selector)
    warning = other_weights(vlm, trained)
    if warning:
        logger.warning("%s", warning)
    return vlm, trained


def shown_name(model: str, vlm: Any) -> str:
    """How reports call the model: the folder of the reference VLM says nothing by its name."""
    is_reference = Path(model).resolve() == MODEL_FOLDER.resolve()
    return "the reference VLM" if is_reference else str(vlm.name)


def check_width(vlm: Any, selector: Any, path: str) -> None:
    """Raise ConfigError when the selector was trained for tokens of another width."""
    if selector.width != vlm.width:
        raise ConfigError(
            f"selector={path} scores tokens of width {selector.width}, but those of {vlm.name} "
            f"have width {vlm.width}; choose the selector that was trained for this model"
        )


def other_weights(vlm: Any, selector: Any) -> str | None:
    """A warning when the selector was trained on other weights than those of this VLM, else None.

    A selector without a recorded digest is let pass: nothing is known of it.
    """
    trained, here = selector.metadata.get("model_digest"), vlm.digest
    if not trained or not here or trained == here:
        return None
    name = selector.metadata.get("model_name", "another model")
    return (
        f"the selector was trained on other weights (model_digest {trained[:12]} of {name}) than "
        f"those of {vlm.name} ({here[:12]}); its ranking may not fit this model"
    )
