"""What a user says about serving: the block `autoselect` of a model's configuration, and requests.

--hf-overrides '{"autoselect": {"selector": "org/name", "budget": 64}}'     for all requests
"mm_processor_kwargs": {"visual_token_budget": 32}                          for one of them
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.files.digest import sha256_of
from autoselect.pruning.budget import budget_to_tokens, written_budget
from autoselect.pruning.diversity import checked_diversity
from autoselect.pruning.folder import CONFIG_FILE, WEIGHTS_FILE
from autoselect.pruning.hub import local_folder
from autoselect.pruning.selector import Selector
from autoselect.serving import BLOCK

BUDGET_ARGUMENT = "visual_token_budget"
EXAMPLE = '{"selector": "org/name", "budget": 64}'


@dataclass(frozen=True)
class ServingSettings:
    """The block `autoselect` of a model's configuration.

    Attributes:
        selector: folder, or `org/name` on the hub.
        budget: tokens per image (an integer), or the share that stays (a float).
        diversity: replaces the weight of diversity in the selector's own configuration.
        revision: branch, tag or commit on the hub.
    """

    selector: str
    budget: int | float
    diversity: Any = None
    revision: str | None = None

    @property
    def shown(self) -> str:
        """Return how errors name the selector."""
        return f"{BLOCK}.selector={self.selector}"

    @classmethod
    def of(cls, hf_config: Any) -> "ServingSettings | None":
        """Return the settings in a model's configuration, or None if it has none.

        Raises:
            ConfigError: the block has unknown or missing keys, or values of another kind.
        """
        block = getattr(hf_config, BLOCK, None)
        if block is None:
            return None
        if not isinstance(block, Mapping):
            raise ConfigError(f"{BLOCK}={block!r} must be a JSON object, such as {EXAMPLE}")
        names = {field.name for field in fields(cls)}
        if unknown := sorted(block.keys() - names):
            raise ConfigError(
                f"{BLOCK} has the unknown keys {', '.join(unknown)}; it takes "
                f"{', '.join(sorted(names))}"
            )
        for name in ("selector", "budget"):
            if name not in block:
                raise ConfigError(f"{BLOCK} has no {name}; write it as in {EXAMPLE}")
        if not isinstance(block["selector"], str) or not block["selector"]:
            raise ConfigError(
                f"{BLOCK}.selector={block['selector']!r} must be a folder or org/name on the hub"
            )
        if block.get("diversity") is not None:
            checked_diversity(block["diversity"])
        return cls(**{**block, "budget": checked_budget(f"{BLOCK}.budget", block["budget"])})

    def load(self, device: Any = "cpu") -> Selector:
        """Return the selector, with the diversity of these settings if they have one.

        Raises:
            ConfigError: it cannot be loaded.
        """
        selector = Selector.from_pretrained(self.selector, device, self.revision)
        if self.diversity is not None:
            selector.diversity = checked_diversity(self.diversity)
        return selector

    def digest(self) -> str:
        """Return 16 hex digits that differ whenever the same image would keep other tokens."""
        files = [CONFIG_FILE, WEIGHTS_FILE]
        folder = local_folder(self.selector, self.revision, files)
        parts = [sha256_of(folder / name) for name in files]
        parts += [repr(self.budget), repr(self.diversity)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def checked_budget(name: str, value: Any) -> int | float:
    """Return a budget: tokens per image (an integer) or the share that stays (a float).

    Args:
        name: what the value is called in an error.
        value: a number, also of NumPy or torch, or text such as `64`, `0.11` or `11%`.

    Raises:
        ConfigError: not a number, below one token, or a share outside 0..1.
    """
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ConfigError(
            f"{name}={value!r} must be a number of tokens per image (64) or the share that stays "
            "(0.11)"
        )
    try:
        number = written_budget(value) if isinstance(value, str) else value
        budget_to_tokens(number, max(1, number) if isinstance(number, int) else 1)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return number


def split_request(arguments: Mapping[str, object]) -> tuple[dict[str, object], int | float | None]:
    """Return a request's processor arguments without the budget, and the budget if it has one.

    Raises:
        ConfigError: the budget is not a number of tokens or a share.
    """
    others = dict(arguments)
    if BUDGET_ARGUMENT not in others:
        return others, None
    return others, checked_budget(BUDGET_ARGUMENT, others.pop(BUDGET_ARGUMENT))
