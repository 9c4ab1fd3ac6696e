"""Where shards lie: local files, or anything fsspec opens, read by byte ranges.

Local paths use the operating system directly; `s3://`, `gs://`, `hf://`, `https://` and the other
protocols of fsspec are opened with the library that fsspec names for them.
"""

import contextlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec

from autoselect.config import ConfigError
from autoselect.files.atomic import write_bytes

_OPEN_FILES = 64
_HEAD_BYTES = 2**16
_RETRY_SECONDS = (0.2, 1.0, 5.0)
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
    """The whole content of a small file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
    """
    if is_remote(path):
        return _request(path, None, None)
    with open(path, "rb") as stream:
        return stream.read()


def read_first_line(path: str) -> bytes:
    """The first line, with its newline; of a remote file no more than needed is transferred.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
    """
    if not is_remote(path):
        with open(path, "rb") as stream:
            return stream.readline()
    head = b""
    while b"\n" not in head:
        more = read_range(path, len(head), max(_HEAD_BYTES, len(head)))
        if not more:
            break
        head += more
    line, newline, _ = head.partition(b"\n")
    return line + newline


def read_range(url: str, start: int, size: int) -> bytes:
    """Bytes [start, start + size) of a remote file; fewer when it ends before.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ConfigError: the server ignores range requests.
    """
    try:
        data = _request(url, start, start + size)
    except FileNotFoundError:
        raise
    except OSError:
        # Asking beyond the end is an error in some protocols.
        left = file_size(url) - start
        if left >= size:
            raise
        return _request(url, start, start + left) if left > 0 else b""
    if len(data) > size:
        raise ConfigError(
            f"path={url}: the server ignores range requests; serve the shards from one that "
            "supports them, or copy them"
        )
    return data


def _request(url: str, start: int | None, end: int | None) -> bytes:
    """Reads from a remote file; passing failures are tried again after 0.2, 1 and 5 seconds."""
    system, inner = file_system(url)
    for pause in (*_RETRY_SECONDS, None):
        try:
            return system.cat_file(inner, start=start, end=end)
        except (FileNotFoundError, PermissionError):
            raise
        except _network_errors() as error:
            if pause is None:
                raise OSError(f"{url}: bytes {start}..{end}: {error}") from error
            time.sleep(pause)
    raise AssertionError("unreachable: the last failure is raised")


def _network_errors() -> tuple[type[Exception], ...]:
    """What a file system raises for a failed request; the HTTP client's errors are no OSError."""
    client = sys.modules.get("aiohttp")
    return (OSError, client.ClientError) if client else (OSError,)


def write_atomically(path: str, data: bytes) -> None:
    """Writes a file that is complete or absent, whatever happens meanwhile.

    Raises:
        OSError: the place cannot be written.
    """
    if is_remote(path):
        system, inner = file_system(path)
        if path.startswith(("http://", "https://")):
            raise PermissionError("web servers are only read from")
        try:
            system.pipe_file(inner, data)
        except _network_errors() as error:
            raise OSError(f"{path}: {error}") from error
        return
    write_bytes(path, data)


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
            return read_range(path, start, size)
        handle = self._handle(path)
        data = os.pread(handle, size, start)
        while len(data) < size and (more := os.pread(handle, size - len(data), start + len(data))):
            data += more
        return data

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
