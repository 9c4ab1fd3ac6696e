"""Evaluate plain LLaVA JSON: its rows become shards in the output folder, by `autoselect.data`."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.convert import convert_llava
from autoselect.data.paths import JSON_FILES
from autoselect.evaluation.settings import EvalSettings

FOLDER = "data"


def alone(action: Callable[[], None]) -> None:
    """Run an action; the `on_main` of a single process."""
    action()


def with_converted_rows(
    settings: EvalSettings, on_main: Callable[[Callable[[], None]], None] = alone
) -> EvalSettings:
    """Return settings that name shards; a JSON file is converted into `OUT/data` first.

    A finished conversion is used again, and a changed file gets a folder of its own. `on_main` runs
    the conversion on rank 0, and raises its ConfigError on every rank.

    Raises:
        ConfigError: the file cannot be read, or a row of it cannot be used; an evaluation skips
            none.
    """
    if not settings.shards.endswith(JSON_FILES):
        if settings.image_folder is not None:
            raise ConfigError(
                f"image_folder={settings.image_folder} goes with a JSON file, but "
                f"shards={settings.shards} names shards, which hold their images; leave it out"
            )
        return settings
    source = Path(settings.shards)
    try:
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(f"shards={source} cannot be read: {error}; check the path") from error
    target = Path(settings.out) / FOLDER / digest

    def convert() -> None:
        images = settings.image_folder or str(source.resolve().parent)
        found = convert_llava(source, [images], target)
        if found.rejected:
            first = found.rejected[0]
            raise ConfigError(
                f"shards={source}: {len(found.rejected)} of {found.rows} rows cannot be used, the "
                f"first is row {first.row}: {first.detail}; correct or remove the rows that "
                f"{target / 'rejected.jsonl'} lists, or name another --image-folder"
            )

    on_main(convert)
    return dataclasses.replace(settings, shards=str(target / "*.tar"), image_folder=None)
