"""Bounds of numbers in settings, as checks that name the setting."""

import math
import re

from autoselect.config.errors import ConfigError, require


def at_least(least: int, name: str, value: int) -> None:
    require(value >= least, f"{name}={value} is below {least}; choose {least} or more")


def positive(name: str, value: float) -> None:
    rule = f"{name}={value} must be above 0 and finite"
    require(value > 0 and math.isfinite(value), f"{rule}; choose a number such as 0.01")


def temperature(name: str, value: float) -> None:
    """Raise ConfigError unless float32 holds the temperature and its inverse, with room."""
    rule = f"{name}={value} must lie in 1e-30..1e30"
    require(1e-30 <= value <= 1e30, f"{rule}; the usual range is 0.01..10")


def share(name: str, value: float) -> None:
    require(0 <= value <= 1, f"{name}={value} must lie in 0..1; it is a share of the whole")


def place(name: str, value: str) -> None:
    """Raise ConfigError unless a text names a place: only shells expand `~` and `$NAME`."""
    require(value.strip() != "", f"{name}={value!r} is empty; name a folder, file or address")
    unexpanded = re.match(r"~|.*\$[A-Za-z_{]", value)
    rule = f"{name}={value}: ~ and $NAME stay as they are in files and behind an equals sign"
    require(unexpanded is None, f"{rule}; write the whole path")


def check_diversity(value: float) -> None:
    if not 0 <= value <= 1:  # no text before: torch.compile cannot trace that of a changing number
        rule = f"diversity={value} must lie in 0..1"
        raise ConfigError(f"{rule}: 0 is the score alone, 1 ignores it after the first token")
