"""Settings of `autoselect eval` that decide what its accuracy and retention are."""

from collections.abc import Mapping
from typing import Any

USUAL = {"reference": "answers", "scoring": "generation"}


def unusual_settings(settings: Mapping[str, Any]) -> list[str]:
    """Return `name=value` of each that differs from the usual; a missing one does not."""
    found = ((name, settings.get(name, usual), usual) for name, usual in USUAL.items())
    return [f"{name}={value}" for name, value, usual in found if value != usual]
