"""The only atomic write of this package.

The content goes into a temporary file in the folder of the target, is flushed to the disk, gets the
target's name, and then the folder is flushed. A reader, and whoever comes after a crash or a power
cut, therefore finds the old content or the new one. Several processes may write one target at once:
the last one wins.
"""

import errno
import functools
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""How the name of every temporary file ends."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a disk, a quota or a file system's file size that is exhausted."""
ABANDONED_SECONDS = 24 * 3600.0
"""Age at which a temporary file counts as one that a killed process left behind."""


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a stream whose content replaces a file at the end of the `with` block.

    After an error in the block the file is what it was before, and nothing else is left. Missing
    folders are made. Permissions follow the umask, as those of any new file.

    Args:
        path: local file to write.

    Raises:
        OSError: the folder cannot be written, or the disk is full; it names the file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target.parent.absolute())
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:16]}{PARTIAL}")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in DISK_FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    sync_folder(target.parent)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the content of a local file, see `replacing`."""
    with replacing(path) as stream:
        stream.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Replace the content of a local file by a text in UTF-8, see `replacing`."""
    write_bytes(path, text.encode())


def sync_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that new names in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@functools.lru_cache(maxsize=1024)
def _remove_abandoned(folder: Path) -> None:
    """Remove old temporary files; once per folder, because listing a large one takes time."""
    oldest = time.time() - ABANDONED_SECONDS
    for path in folder.glob(f"*.{'[0-9a-f]' * 16}{PARTIAL}"):
        try:
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            pass  # another process removed it
