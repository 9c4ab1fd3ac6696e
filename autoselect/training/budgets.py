"""The check of all budgets of a training, before hours are spent on it."""

import sys

from autoselect.config import ConfigError, TrainConfig
from autoselect.pruning.budget import parse_budgets


def check_budgets(config: TrainConfig, num_tokens: int | None) -> None:
    """Check the budget of the gate, and those of the search for diversity that ends the training.

    Args:
        config: settings of the training.
        num_tokens: visual tokens of one image of the model; None if images have different numbers.

    Raises:
        ConfigError: a budget is not a number, or exceeds the visual tokens.
    """
    largest = sys.maxsize if num_tokens is None else num_tokens
    if config.gate.token_budget > largest:
        raise ConfigError(
            f"gate.token_budget={config.gate.token_budget} exceeds the {num_tokens} visual "
            f"tokens of this model; choose 1..{num_tokens}"
        )
    if config.tune_images == 0:
        return
    parse_budgets(config.tune_budgets, largest, "tune_budgets")
