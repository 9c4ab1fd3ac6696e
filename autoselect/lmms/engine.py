"""Answer questions with a public model, pruned by a selector or a baseline, or unpruned."""

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
    """Return a token count (64), a share (0.11 or `11%`), or None for `full`."""
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
    """A model that answers questions with all visual tokens, or with K per image.

    Args:
        pretrained: folder or hub name of the model.
        selector: folder or hub name of the selector; needed by the method `autoselect`.
        budget: `full`, a token count, a share or a percentage.
        method: `autoselect` or a baseline.
        seed: seed of the random baseline.
        dtype: `auto`, `float32` or `bfloat16`.
        device: torch device; None takes a GPU if there is one.

    Raises:
        ConfigError: model or selector cannot be loaded, or the settings do not fit together.
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
                f"budget={budget} needs a selector; give selector=FOLDER, choose a baseline with "
                "method=NAME, or set budget=full"
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
