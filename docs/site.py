"""Adapt the pages to the site: its start is the README, and files of the source tree are named."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from autoselect.config import TrainConfig
from autoselect.config.flags import settings_help

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)#:]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the README and from the settings."""
    readme = LINK.sub(_from_readme, (ROOT / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=readme))
    settings = f"# Settings of a training\n\n```text\n{settings_help(TrainConfig)}\n```\n"
    files.append(File.generated(config, "settings.md", content=settings))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to files of the source tree, which the site does not have, by their paths.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    return LINK.sub(_named, markdown)


def _from_readme(found: re.Match[str]) -> str:
    text, path, anchor = found.groups()
    inside = path.removeprefix("docs/")
    return f"{text}({inside if inside != path else f'../{path}'}{anchor or ''})"


def _named(found: re.Match[str]) -> str:
    text, path, _ = found.groups()
    if not path.startswith("../"):
        return found[0]
    full = ROOT / os.path.normpath(path.removeprefix("../"))
    if not full.exists():
        raise FileNotFoundError(f"{full} does not exist")
    return f"{text.strip('[]')} (`{full.relative_to(ROOT)}`)"
