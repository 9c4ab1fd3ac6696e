"""Tables of an ablation inside a page whose prose is written by hand.

    <!-- ablation: retention reference channel_noise -->
    ... the table, written by `autoselect evidence` ...
    <!-- end -->

The first word after the colon is one of `TABLES`; the others are the variants that are shown, all
of them when none is named. Everything outside such a block stays as it is.
"""

import re
from pathlib import Path
from typing import Any

from autoselect.ablation.tables import TABLES
from autoselect.config import ConfigError

BLOCK = re.compile(r"<!-- ablation: (?P<what>[^\n]*?) -->\n.*?<!-- end -->", re.DOTALL)
EMPTY = "*Not measured yet.*"


def fill(page: str, found: dict[str, Any] | None) -> str:
    """The page with every block's table written anew.

    Args:
        page: Markdown with blocks.
        found: of `collect`; None empties all blocks.

    Raises:
        ConfigError: a block without an end, or one that names an unknown table.
    """
    if page.count("<!-- ablation:") != len(BLOCK.findall(page)):
        raise ConfigError("page: a block `<!-- ablation: ... -->` has no `<!-- end -->`; add it")

    def table(block: re.Match[str]) -> str:
        words = block["what"].split()
        kind, names = (words[0], words[1:]) if words else ("", [])
        if kind not in TABLES:
            raise ConfigError(
                f"page: `<!-- ablation: {block['what']} -->` names no table; choose one of "
                f"{', '.join(TABLES)}"
            )
        lines = [EMPTY]
        if found is not None:
            shown = names or [row["name"] for row in found["variants"]]
            lines = TABLES[kind](found, shown)
        return "\n".join([f"<!-- ablation: {block['what']} -->", "", *lines, "", "<!-- end -->"])

    return BLOCK.sub(table, page)


def write_page(path: Path, found: dict[str, Any] | None) -> int:
    """Fill the blocks of a page in place; returns how many there are.

    Raises:
        ConfigError: no such page, or none of its blocks can be filled.
    """
    if not path.is_file():
        raise ConfigError(f"page={path} does not exist; give a Markdown file with blocks")
    filled = fill(path.read_text(), found)
    blocks = len(BLOCK.findall(filled))
    if not blocks:
        raise ConfigError(f"page={path} has no block `<!-- ablation: ... -->`; add one")
    path.write_text(filled)
    return blocks
