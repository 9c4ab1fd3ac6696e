"""Protect earlier results: a report of other settings is never replaced silently."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from os.path import normpath
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError

logger = logging.getLogger(__name__)
SETTINGS = "settings"
"""Key of a report that holds the settings that it was made with."""
PATHS = ("model", "selector", "shards", "image_folder", "train_run")
FREE = (
    *("out", "images_per_part", "rows_per_batch", "audit", "latency_repeats", "latency_compiled"),
    *("device", "experiment", "tracking"),
)
"""Settings that may differ from those of the report that is replaced."""


def check_earlier(path: Path, settings: Any, rank: int = 0) -> None:
    """Check that a folder holds no report, or one of the same settings, which may be replaced.

    Args:
        path: file of the report, a JSON object that names its settings.
        settings: a dataclass of settings, or a mapping of them by name.
        rank: rank of this process; only rank 0 warns.

    Raises:
        ConfigError: it holds a report of other settings, or a file that is not a report.
    """
    if not path.is_file():
        return
    known = _settings_of(path)
    if known is None:
        if rank == 0:
            logger.warning("%s of an earlier version, which names no settings, is replaced", path)
        return
    if changed := _changed(known, settings):
        raise ConfigError(
            f"out={path.parent} holds a report of other settings ({', '.join(changed)}); choose "
            f"another folder, or remove {path} to replace it"
        )


def remove_earlier(path: Path, settings: Any) -> None:
    """Remove a report that `check_earlier` would refuse, from a folder whose owner makes it anew.

    Args:
        path, settings: those of `check_earlier`; a mapping may name only the settings that count.
    """
    try:
        known = _settings_of(path) if path.is_file() else None
    except ConfigError:
        path.unlink()
        return
    if known is not None and _changed(known, settings):
        path.unlink()


def _settings_of(path: Path) -> dict[str, Any] | None:
    """Return the settings that a report names; None if it is of a version that named none."""
    try:
        return json.loads(path.read_text()).get(SETTINGS)
    except (ValueError, AttributeError):
        raise ConfigError(
            f"out={path.parent} holds a {path.name} that is not a report; remove it, or choose "
            "another folder"
        ) from None


def _changed(known: Mapping[str, Any], settings: Any) -> list[str]:
    """Return what differs, as `name: old -> new`; what a report does not name had its default."""
    defaults = {}
    if dataclasses.is_dataclass(settings):
        defaults = {field.name: field.default for field in dataclasses.fields(settings)}
        settings = {name: getattr(settings, name) for name in defaults}
    changed = []
    for name, new in settings.items():
        old = known.get(name, defaults.get(name))
        if name not in FREE and _plain(name, old) != _plain(name, new):
            changed.append(f"{name}: {old} -> {new}")
    return changed


def _plain(name: str, value: Any) -> Any:
    return normpath(value) if name in PATHS and isinstance(value, str | Path) else value
