"""Where shards lie: local files, or anything fsspec opens, read by byte ranges.

Local paths use the operating system directly; `s3://`, `gs://`, `hf://`, `https://` and the other
protocols of fsspec are opened with the library that fsspec names for them.
"""

import contextlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from autoselect.config import ConfigError

_OPEN_FILES = 64
# What file systems raise when they cannot serve a path, beside OSError.
_MISSING_LIBRARY = (ImportError, ValueError)


def is_remote(path: str) -> bool:
    """Whether the path is a URL."""
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        ConfigError: no such protocol, or its library is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except _MISSING_LIBRARY as error:
        raise ConfigError(f"path={url} cannot be opened: {error}") from error


def file_size(path: str) -> int:
    """Size in bytes.

    Raises:
        OSError: the file does not exist or cannot be reached.
    """
    if not is_remote(path):
        return os.stat(path).st_size
    system, inner = file_system(path)
    return int(system.info(inner)["size"])


def exists(path: str) -> bool:
    """Whether the file is there."""
    if not is_remote(path):
        return os.path.exists(path)
    system, inner = file_system(path)
    return bool(system.exists(inner))


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[BinaryIO]:
    """Opens a file for one pass from front to back."""
    if is_remote(path):
        system, inner = file_system(path)
        with system.open(inner, "rb", block_size=2**22) as stream:
            yield stream
    else:
        with open(path, "rb") as stream:
            yield stream


def read_bytes(path: str) -> bytes:
    """The whole content of a small file."""
    with open_stream(path) as stream:
        return stream.read()


def read_first_line(path: str) -> bytes:
    """The first line, with its newline; the rest is not transferred where that can be avoided."""
    with open_stream(path) as stream:
        return stream.readline()


def write_atomically(path: str, data: bytes) -> None:
    """Writes a file that is complete or absent, whatever happens meanwhile.

    Raises:
        OSError: the place cannot be written.
    """
    if is_remote(path):
        system, inner = file_system(path)
        system.pipe_file(inner, data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in the folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RangeReader:
    """Reads byte ranges; keeps a few local files open, safely across forks and pickling."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, start: int, size: int) -> bytes:
        """Bytes [start, start + size); fewer when the file ends before.

        Raises:
            OSError: the file cannot be read.
        """
        if is_remote(path):
            return self._read_remote(path, start, size)
        handle = self._handle(path)
        data = os.pread(handle, size, start)
        while len(data) < size and (more := os.pread(handle, size - len(data), start + len(data))):
            data += more
        return data

    def _read_remote(self, path: str, start: int, size: int) -> bytes:
        system, inner = file_system(path)
        return system.cat_file(inner, start=start, end=start + size)

    def _handle(self, path: str) -> int:
        handle = self._files.pop(path, None)
        if handle is None:
            handle = os.open(path, os.O_RDONLY)
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files[path] = handle
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict()}

    def __del__(self) -> None:
        for handle in self._files.values():
            os.close(handle)
