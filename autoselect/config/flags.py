"""Command-line flags: one per field of a settings dataclass, and checks of single numbers."""

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any

from autoselect.config import ConfigError


def add_setting_flags(
    parser: argparse.ArgumentParser,
    settings: type,
    summaries: Mapping[str, str],
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """One flag per field; a truth value becomes `--name` and `--no-name`.

    Args:
        parser: that gets the flags.
        settings: a dataclass; fields without a default are required.
        summaries: help text of every field.
        defaults: shown and used in place of the fields' own.
    """
    for field in dataclasses.fields(settings):
        flag = f"--{field.name.replace('_', '-')}"
        default = (defaults or {}).get(field.name, field.default)
        summary = summaries[field.name]
        if isinstance(default, bool):
            switch = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=switch, default=default, help=summary)
            continue
        required = default is dataclasses.MISSING
        parser.add_argument(
            flag,
            required=required,
            default=None if required else default,
            type=next((t for t in (int, float) if t.__name__ in str(field.type)), str),
            help=summary,
        )


def check_counts(**counts: int | None) -> None:
    """Raise ConfigError for a number below 1, by its name; None is a flag that was not given."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value} is below 1; choose 1 or more")


def check_port(port: int) -> None:
    """Raise ConfigError unless `port` is the number of a TCP port."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"port={port} is no TCP port; choose 1024..65535")
