"""A VLM and a selector that fit each other."""

from typing import Any

import torch

from autoselect.config import ConfigError
from autoselect.selector import Selector
from autoselect.vlm import FrozenVLM


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
    return vlm, trained


def check_width(vlm: Any, selector: Any, path: str) -> None:
    """Raise ConfigError when the selector was trained for tokens of another width."""
    if selector.width != vlm.width:
        raise ConfigError(
            f"selector={path} scores tokens of width {selector.width}, but those of {vlm.name} "
            f"have width {vlm.width}; choose the selector that was trained for this model"
        )
