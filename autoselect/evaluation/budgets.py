"""Budgets as users write them; `autoselect.selector.budget_to_tokens` converts and checks them."""

from autoselect.config import ConfigError
from autoselect.selector import budget_to_tokens


def token_budget(text: str, num_tokens: int) -> int:
    """The number of visual tokens that a written budget stands for.

    Args:
        text: tokens (`64`), a share with a decimal point (`0.111`), or a percentage (`11.1%`).
        num_tokens: visual tokens of one image of the model, N.

    Raises:
        ConfigError: no number, or outside 1..N.
    """
    text = text.strip()
    try:
        if text.endswith("%"):
            budget: int | float = float(text[:-1]) / 100
        else:
            budget = float(text) if "." in text else int(text)
    except ValueError as error:
        raise ConfigError(
            f"budgets={text!r} is no number; give tokens (64), a share (0.11) or a percentage (11%)"
        ) from error
    return budget_to_tokens(budget, num_tokens)


def parse_budgets(text: str, num_tokens: int) -> tuple[int, ...]:
    """Comma-separated budgets as token counts, ascending and without repeats.

    Raises:
        ConfigError: an empty list, or an entry that `token_budget` refuses.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError("budgets='' names no budget; give for example 8,16,32 or 11%,22%")
    return tuple(sorted({token_budget(part, num_tokens) for part in parts}))
