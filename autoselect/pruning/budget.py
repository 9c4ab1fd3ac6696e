"""Budgets: how many visual tokens stay, as a number, a share or text."""

from autoselect.config import ConfigError


def budget_to_tokens(budget: int | float | str, num_tokens: int) -> int:
    """Return the number of tokens that a budget means; the only conversion in the project.

    Args:
        budget: K (an integer), or the share that stays, above 0 and at most 1 (a float); as text,
            tokens (`64`), a share with a decimal point (`0.111`) or a percentage (`11.1%`).
        num_tokens: N.

    Raises:
        ConfigError: not a number, outside 1..N, or a share outside 0..1.
    """
    if isinstance(budget, str):
        budget = written_budget(budget)
    if isinstance(budget, float):
        if not 0 < budget <= 1:
            raise ConfigError(
                f"budget={budget} as a share must lie above 0 and at most at 1; "
                "use an integer for a number of tokens"
            )
        return max(1, round(budget * num_tokens))
    if budget < 1:
        raise ConfigError(f"budget={budget} is below 1; choose 1..{num_tokens}")
    if budget > num_tokens:
        raise ConfigError(
            f"budget={budget} exceeds the {num_tokens} visual tokens of this model; "
            f"choose 1..{num_tokens}"
        )
    return budget


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
