"""Fill the tables of an ablation into a page whose prose is written by hand.

    <!-- ablation: retention reference channel_noise -->
    ... the table, written by `autoselect evidence` ...
    <!-- end -->

The first word after the colon is one of `TABLES`. The other words are the variants to show; all
are shown if none is named. Text outside such blocks is not changed.
"""

import re
from pathlib import Path
from typing import Any

from autoselect.ablation.tables import TABLES
from autoselect.config import ConfigError
from autoselect.files.atomic import write_text

BLOCK = re.compile(r"<!-- ablation: (?P<what>[^\n]*?) -->\n.*?<!-- end -->", re.DOTALL)
EMPTY = "*Not measured yet.*"


def fill(page: str, found: dict[str, Any] | None) -> str:
    """Return the page with the tables of all blocks replaced, or emptied if `found` is None.

    Raises:
        ConfigError: a block has no end or names an unknown table.
    """
    if page.count("<!-- ablation:") != len(BLOCK.findall(page)):
        raise ConfigError("page: a block `<!-- ablation: ... -->` has no `<!-- end -->`; add it")

    def table(block: re.Match[str]) -> str:
        words = block["what"].split()
        kind, names = (words[0], words[1:]) if words else ("", [])
        if kind not in TABLES:
            raise ConfigError(
                f"page: `<!-- ablation: {block['what']} -->` does not name a known table; choose "
                f"one of {', '.join(TABLES)}"
            )
        lines = [EMPTY]
        if found is not None:
            shown = names or [row["name"] for row in found["variants"]]
            lines = TABLES[kind](found, shown)
        return "\n".join([f"<!-- ablation: {block['what']} -->", "", *lines, "", "<!-- end -->"])

    return BLOCK.sub(table, page)


def write_page(path: Path, found: dict[str, Any] | None) -> int:
    """Fill the blocks of a page in place, and return how many there are.

    Raises:
        ConfigError: the page does not exist, has no block, or has a broken one.
    """
    if not path.is_file():
        raise ConfigError(f"page={path} does not exist; give a Markdown file with blocks")
    filled = fill(path.read_text(), found)
    blocks = len(BLOCK.findall(filled))
    if not blocks:
        raise ConfigError(f"page={path} has no block `<!-- ablation: ... -->`; add one")
    write_text(path, filled)
    return blocks
