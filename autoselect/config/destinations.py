"""Checks that results can be written, made before hours are spent on them."""

import os
import stat
import tempfile
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.config.files import check_replaceable

RUN_FOLDERS = ("checkpoints", "best", "selector", "tune")
"""What a training makes in its output folder."""


def existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists; a link counts wherever it leads."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def cannot_write(folder: Path) -> str:
    """Return why no file can be created in a folder or its nearest parent, or an empty text."""
    place = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"{place}: {error.strerror}"


def check_folder(setting: str, folder: Path | str) -> None:
    """Raise ConfigError if `folder`, the value of `setting`, can neither be written nor created."""
    why = cannot_write(Path(folder))
    if why:
        raise ConfigError(f"{setting}={folder} cannot be written ({why}); choose another folder")


def check_run_folder(output: Path) -> None:
    """Check that a training can write its output folder and what is in it.

    Raises:
        ConfigError: it cannot, or would replace a file that it did not write.
    """
    for folder in (output, *(output / name for name in RUN_FOLDERS)):
        check_folder("output", folder)
    check_replaceable(output)


def check_file(setting: str, path: Path | str) -> None:
    """Raise ConfigError if the file `path`, the value of `setting`, cannot be written.

    A link, a device or a pipe is refused, because writing a file replaces what has its name.
    """
    if Path(path).is_dir():
        why = f"{path}: Is a directory"
    elif os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        why = f"{path}: Not a plain file"
    else:
        why = cannot_write(Path(path).parent)
    if why:
        raise ConfigError(f"{setting}={path} cannot be written ({why}); choose another file")
