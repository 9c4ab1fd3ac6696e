"""Adapt the pages to the site: some are generated, and files of the source tree are named."""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from autoselect.cli.main import GROUPS, parser
from autoselect.config import TrainConfig
from autoselect.config.flags import settings_help

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)#:]+)(#[^)]*)?\)")
GENERATED = {
    "../README.md": "index.md",
    "../autoselect/config/settings.py": "settings.md",
    "../autoselect/cli/main.py": "commands.md",
}
"""Sources from which a page of the site is generated: links to them lead to the page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the README, the settings and the command line."""
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}  # argparse formats for the terminal
    pages = {
        "index.md": LINK.sub(_from_readme, (ROOT / "README.md").read_text()),
        "settings.md": f"# Settings of a training\n\n{_block(settings_help(TrainConfig))}",
        "commands.md": "\n\n".join(commands()),
    }
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to files of the source tree, which the site does not have, by their paths.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    return LINK.sub(_named, markdown)


def commands() -> Iterator[str]:
    """Yield the parts of the page of the command line: what `--help` says, step by step."""
    yield "# Command line\n\nWhat a command returns: [exit codes](exit-codes.md)."
    for step, names in GROUPS.items():
        yield f"## {step.capitalize()}"
        for name in names:
            yield from _helped(_choices(parser(name))[name], 3)


def _helped(command: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """Yield heading and help of a command, then those of its sub-commands."""
    yield f"{'#' * level} {command.prog}"
    if command.prog == "autoselect train":
        yield "`SETTING` is one of the [settings of a training](settings.md)."
        command.epilog = None
    for action in command._actions:
        if action.dest == "workers":
            action.default = "one per core"  # not the number of the machine that builds the site
    yield _block(command.format_help())
    for one in _choices(command).values():
        yield from _helped(one, level + 1)


def _choices(command: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the sub-commands by name."""
    found = (a for a in command._actions if isinstance(a, argparse._SubParsersAction))
    return {name: one for action in found for name, one in action.choices.items()}


def _block(text: str) -> str:
    return f"```text\n{text.strip()}\n```\n"


def _from_readme(found: re.Match[str]) -> str:
    text, path, anchor = found.groups()
    inside = path.removeprefix("docs/")
    return f"{text}({inside if inside != path else f'../{path}'}{anchor or ''})"


def _named(found: re.Match[str]) -> str:
    text, path, anchor = found.groups()
    if not path.startswith("../"):
        return found[0]
    if path in GENERATED:
        return f"{text}({GENERATED[path]}{anchor or ''})"
    full = ROOT / os.path.normpath(path.removeprefix("../"))
    if not full.exists():
        raise FileNotFoundError(f"{full} does not exist")
    said, place = text.strip("[]`"), str(full.relative_to(ROOT))
    return f"`{place}`" if place.endswith(said) else f"{said} (`{place}`)"
