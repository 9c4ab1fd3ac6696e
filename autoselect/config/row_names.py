"""Names of rows: `autoselect eval` writes them, model card and leaderboard read them.

The first selector's row is `autoselect`, that of a further one `autoselect:NAME`. With several
diversities the first has these names; of the others the rows end in `diversity-VALUE`.
"""

SELECTOR = "autoselect"
OWN = "own"
"""The diversity that the selector's folder names."""
DIVERSITY = "diversity-"


def diversity_text(value: str) -> str:
    """Return how a row name shows a diversity: a number in its shortest form, or `own`.

    Raises:
        ValueError: the value is neither.
    """
    return value if value == OWN else f"{float(value):g}"


def diversity_row(name: str, diversity: str) -> str:
    """Return the row of a further diversity.

    Args:
        name: row of the same selector with the first diversity.
        diversity: what `diversity_text` returned.
    """
    return f"{name}{':' if name == SELECTOR else '-'}{DIVERSITY}{diversity}"
