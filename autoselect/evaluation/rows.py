"""Evaluate plain LLaVA JSON: its rows become shards in the output folder, by `autoselect.data`."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.data.convert import convert_llava
from autoselect.data.faults import RecordError
from autoselect.data.paths import is_json_file
from autoselect.data.row_keys import read_row
from autoselect.data.text_files import read_json_rows
from autoselect.evaluation.identity import digest
from autoselect.evaluation.settings import EvalSettings

FOLDER = "data"


def alone(action: Callable[[], None]) -> None:
    """Run an action; the `on_main` of a single process."""
    action()


def with_converted_rows(
    settings: EvalSettings, on_main: Callable[[Callable[[], None]], None] = alone
) -> EvalSettings:
    """Return settings that name shards; a JSON file is converted into `OUT/data` first.

    A finished conversion is used again. A changed file, a changed or added picture, or another
    folder of pictures gets a folder of its own. `on_main` runs the conversion on rank 0, and raises
    its ConfigError on every rank.

    Raises:
        ConfigError: the file cannot be read, or a row of it cannot be used; an evaluation skips
            none.
    """
    if not is_json_file(settings.shards):
        if settings.image_folder is not None:
            raise ConfigError(
                f"image_folder={settings.image_folder} goes with a JSON file, but "
                f"shards={settings.shards} names shards, which hold their images; leave it out"
            )
        return settings
    source = Path(settings.shards)
    images = settings.image_folder or str(source.resolve().parent)
    try:
        rows, sha256 = read_json_rows(source)
    except ConfigError as error:
        raise ConfigError(f"shards={str(error).removeprefix('source=')}") from error
    target = Path(settings.out) / FOLDER / digest([sha256, *_pictures(rows, Path(images))])

    def convert() -> None:
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


def _pictures(rows: Iterable[Any], folder: Path) -> Iterator[str]:
    """Yield the folder, and size and time of each picture in it that a row names."""
    yield str(folder.resolve())
    for row in rows:
        with suppress(RecordError):  # the conversion says what is wrong with such a row
            for name in read_row(row).pictures:
                with suppress(OSError, ValueError):
                    found = (folder / name).stat()
                    yield f"{name} {found.st_size} {found.st_mtime_ns}"
