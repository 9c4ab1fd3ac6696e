"""Read lists of token budgets."""

from autoselect.config import ConfigError
from autoselect.pruning.budget import budget_to_tokens


def parse_budgets(text: str, num_tokens: int) -> tuple[int, ...]:
    """Return comma-separated budgets as token counts, ascending and without repeats.

    Args:
        text: entries that `budget_to_tokens` accepts.
        num_tokens: visual tokens of one image of the model, N.

    Raises:
        ConfigError: the list is empty, or `budget_to_tokens` refuses an entry.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError("budgets='' names no budget; give for example 8,16,32 or 11%,22%")
    return tuple(sorted({budget_to_tokens(part, num_tokens) for part in parts}))
