"""A public model with a selector, a baseline or nothing attached: images and questions to texts."""

from typing import cast

import torch

from autoselect.config import ConfigError
from autoselect.evaluation.answers.asking import AskedVLM
from autoselect.evaluation.loading import checked_device
from autoselect.evaluation.methods.attachable import BaselineSelector
from autoselect.pruning.attachment import attach
from autoselect.pruning.selector import Selector, written_budget
from autoselect.vlm import FrozenVLM

FULL = "full"
SELECTOR = "autoselect"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def parse_budget(value: object) -> int | float | None:
    """K (64), a share (0.11 or `11%`), or None for `full`.

    Raises:
        ConfigError: anything else.
    """
    text = str(value).strip()
    if text == FULL:
        return None
    try:
        return written_budget(text)
    except ConfigError:
        raise ConfigError(
            f"budget={value!r} must be full, a number of tokens, a share (0.11) or a percentage"
        ) from None


class PrunedVLM(AskedVLM):
    """A model that answers questions, with all or with K visual tokens per image.

    Args:
        pretrained: folder or hub name of the model.
        selector: folder or hub name of the selector; needed for the method `autoselect`.
        budget: see `parse_budget`.
        method: `autoselect`, or a baseline.
        seed: of the random baseline.
        dtype: `auto`, `float32` or `bfloat16`.
        device: a GPU where there is one by default.

    Raises:
        ConfigError: one of them cannot be loaded, or they do not fit each other.
    """

    def __init__(
        self,
        pretrained: str,
        selector: str | None = None,
        budget: object = FULL,
        method: str = SELECTOR,
        seed: int = 0,
        dtype: str = "auto",
        device: str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
        where = checked_device(device)
        self.budget = parse_budget(budget)
        if self.budget is not None and method == SELECTOR and selector is None:
            raise ConfigError(
                f"budget={budget} needs a selector: give selector=FOLDER, choose a baseline with "
                "method=, or take budget=full"
            )
        super().__init__(FrozenVLM.from_pretrained(pretrained, DTYPES[dtype], where))
        if self.budget is None:
            return
        if method == SELECTOR:
            assert selector is not None
            chosen = Selector.from_pretrained(selector, device=where)
        else:
            self.baseline = BaselineSelector(method, self.budget, self.vlm.width, seed)
            chosen = cast(Selector, self.baseline)
        attach(self.vlm.model, chosen, self.budget)
