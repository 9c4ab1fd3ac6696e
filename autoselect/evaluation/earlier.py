"""Protect the report of an earlier evaluation: one of other settings is never replaced."""

import json
import logging
from dataclasses import fields
from os.path import normpath
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.evaluation.settings import EvalSettings

logger = logging.getLogger(__name__)
PATHS = ("model", "selector", "shards", "image_folder")
FREE = (
    *("out", "images_per_part", "rows_per_batch", "audit", "latency_compiled"),
    *("device", "experiment", "tracking"),
)
"""Settings that may differ from those of the report that is replaced."""


def check_earlier(settings: EvalSettings) -> None:
    """Check that `out` holds no report, or one of the same settings, which may be replaced.

    Raises:
        ConfigError: it holds a report of other settings, or a `report.json` that is none.
    """
    path = Path(settings.out) / "report.json"
    if not path.is_file():
        return
    try:
        report = json.loads(path.read_text())
        known = report.get("settings")
    except (ValueError, AttributeError):
        raise ConfigError(
            f"out={settings.out} holds a report.json that is not a report; remove it, or choose "
            "another folder"
        ) from None
    if known is None:
        logger.warning("%s of an earlier version, which names no settings, is replaced", path)
        return
    changed = []
    for field in fields(settings):
        old, new = known.get(field.name, field.default), getattr(settings, field.name)
        if field.name not in FREE and _plain(field.name, old) != _plain(field.name, new):
            changed.append(f"{field.name}: {old} -> {new}")
    if changed:
        raise ConfigError(
            f"out={settings.out} holds a report of other settings ({', '.join(changed)}); choose "
            f"another folder, or remove {path} to replace it"
        )


def _plain(name: str, value: Any) -> Any:
    return normpath(value) if name in PATHS and isinstance(value, str) else value
