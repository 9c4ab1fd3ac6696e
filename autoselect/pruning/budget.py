"""Budgets: how many visual tokens stay, as a number, a share, text or a rule."""

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from torch import Tensor

from autoselect.config import ConfigError

OneBudget = int | float | str | Callable[[int], int | float | str]
"""Tokens that stay of an image, their share, one of both as text, or a rule: tokens to budget."""
Budget = OneBudget | Sequence[OneBudget]
"""A sequence has one budget for each image."""
OnSmallImage = Literal["keep", "error"]


def budget_to_tokens(budget: OneBudget, num_tokens: int) -> int:
    """Return the number of tokens that a budget means; the only conversion in the project.

    Args:
        budget: K (an integer), or the share that stays, above 0 and at most 1 (a float); or as
            `read_budget` takes it.
        num_tokens: N.

    Raises:
        ConfigError: not a number, outside 1..N, or a share outside 0..1.
    """
    given, budget = budget, read_budget(budget, num_tokens)
    if isinstance(budget, float):
        if not 0 < budget <= 1:
            raise ConfigError(
                f"budget={given} as a share must lie above 0, up to 1; give one such as 0.11, or "
                "an integer for a number of tokens"
            )
        return max(1, round(budget * num_tokens))
    if budget < 1:
        raise ConfigError(
            f"budget={budget} is below 1; give at least 1 token, or a share such as 0.11"
        )
    if budget > num_tokens:
        raise ConfigError(
            f"budget={budget} exceeds the {num_tokens} visual tokens of this model; "
            f"choose 1..{num_tokens}"
        )
    return budget


def parse_budgets(text: str, num_tokens: int, setting: str = "budgets") -> tuple[int, ...]:
    """Return comma-separated budgets as token counts, ascending and without repeats.

    Args:
        text: entries that `budget_to_tokens` accepts.
        num_tokens: visual tokens of one image of the model, N.
        setting: name of the list in errors.

    Raises:
        ConfigError: the list is empty, or `budget_to_tokens` refuses an entry.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(
            f"{setting}={text!r} names no budget; give for example 8,16,32 or 11%,22%"
        )
    try:
        return tuple(sorted({budget_to_tokens(part, num_tokens) for part in parts}))
    except ConfigError as error:
        raise ConfigError(f"{setting}={text!r}: {error}") from error


def read_budget(budget: Any, num_tokens: int) -> int | float:
    """Return the budget of one image as a plain number.

    Args:
        budget: a number of Python, NumPy or torch, text as for `written_budget`, or a function that
            takes the visual tokens of the image and returns one of these.
        num_tokens: N.

    Raises:
        ConfigError: it is none of these, or text that is not a number.
    """
    if isinstance(budget, float) or type(budget) is int:
        return budget
    if isinstance(budget, str):
        return written_budget(budget)
    if isinstance(budget, Tensor | np.ndarray) and budget.ndim == 0:
        return read_budget(budget.item(), num_tokens)
    if isinstance(budget, Integral) and not isinstance(budget, bool):
        return int(budget)
    if isinstance(budget, Real) and not isinstance(budget, bool):
        return float(budget)
    if callable(budget):
        found = budget(num_tokens)
        if callable(found):
            raise _unknown(found)
        return read_budget(found, num_tokens)
    raise _unknown(budget)


def listed_budgets(budget: Any) -> list[Any] | None:
    """Return the budgets of a list (or array) that has one for each image, else None."""
    if isinstance(budget, Tensor | np.ndarray):
        return budget.tolist() if budget.ndim else None
    return list(budget) if isinstance(budget, list | tuple) else None


def check_choices(video_budget_per: str, on_small_image: str) -> None:
    """Raise ConfigError if a choice of an attachment, which users may change, is unknown."""
    for name, choice, known in (
        ("video_budget_per", video_budget_per, ("clip", "frame")),
        ("on_small_image", on_small_image, ("keep", "error")),
    ):
        if choice not in known:
            raise ConfigError(f"{name}={choice!r} must be {' or '.join(map(repr, known))}")


def check_settings(budget: Any, video_budget_per: str, on_small_image: str) -> None:
    """Check the settings of an attachment.

    Raises:
        ConfigError: a budget means no number of tokens whatever the image, or a choice is unknown.
    """
    check_choices(video_budget_per, on_small_image)
    listed = listed_budgets(budget)
    if listed == []:
        raise ConfigError(f"budget={budget!r} is empty; give one for each image, or one for all")
    for one in [budget] if listed is None else listed:
        if not callable(one):
            check_budget(one)


def check_budget(budget: OneBudget) -> None:
    """Raise ConfigError if a budget means no number of tokens, whatever the image."""
    value = read_budget(budget, 1)
    budget_to_tokens(budget, value if isinstance(value, int) else 1)


def _unknown(budget: Any) -> ConfigError:
    return ConfigError(
        f"budget={budget!r} is not a number; give tokens (64), a share (0.11), a percentage "
        "('11%'), or a function of the visual tokens of an image that returns one of these"
    )


def is_smaller(budget: int | float | None, num_tokens: int) -> bool:
    """Return True if an image has fewer tokens than its budget, and so keeps all of them."""
    return isinstance(budget, int) and budget > num_tokens


def kept_tokens(budget: int | float, num_tokens: int) -> int:
    """Return how many tokens of an image stay: its budget, or all of them if it has fewer."""
    return budget_to_tokens(num_tokens if is_smaller(budget, num_tokens) else budget, num_tokens)


def written_budget(text: str) -> int | float:
    """Read a budget from text: tokens (`64`), a share (`0.11`) or a percentage (`11%`).

    Raises:
        ConfigError: not a number.
    """
    text = text.strip()
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError as error:
        raise ConfigError(
            f"budget={text!r} is not a number; give tokens (64), a share (0.11) or a percentage "
            "(11%)"
        ) from error
