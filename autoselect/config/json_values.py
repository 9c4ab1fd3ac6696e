"""Checks of single values of the DeepSpeed JSON."""

import math
from collections.abc import Mapping
from typing import Any

from autoselect.config.errors import require


def check_object(name: str, value: Any) -> None:
    require(
        isinstance(value, Mapping),
        f"{name}={value!r} is not a JSON object; give settings in braces",
    )


def is_count(value: Any) -> bool:
    """Return True for a whole number from 1 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: Any, limit: float = math.inf) -> bool:
    """Return True for a number from 0 on, below `limit`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < limit
