"""The one writer of rows of Markdown tables."""

import re
from collections.abc import Iterable

BAR = re.compile(r"(?<!\\)\|")


def table_row(cells: Iterable[object]) -> str:
    """Return a row of a table. Texts may hold bars and line breaks, which would end a cell."""
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(value: object) -> str:
    return BAR.sub(r"\\|", " ".join(str(value).split()))
