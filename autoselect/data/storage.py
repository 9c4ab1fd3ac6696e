"""Read shards by byte ranges, from local files or from anything that fsspec opens.

Local paths use the operating system directly. fsspec picks the library for `s3://`, `gs://`,
`hf://`, `https://` and its other protocols.
"""

import contextlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import fsspec

from autoselect.config import ConfigError
from autoselect.files.atomic import write_bytes

_OPEN_FILES = 64
_HEAD_BYTES = 2**16
_RETRY_SECONDS = (0.2, 1.0, 5.0)
# Raised by fsspec if a protocol is unknown or its library is not installed.
_MISSING_LIBRARY = (ImportError, ValueError)


def is_remote(path: str) -> bool:
    return "://" in path


def is_web(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path inside it; ConfigError if fsspec has none."""
    try:
        return fsspec.core.url_to_fs(url)
    except _MISSING_LIBRARY as error:
        raise ConfigError(f"path={url} cannot be opened: {error}") from error


def file_size(path: str) -> int:
    """Return the size in bytes; raise OSError if the file cannot be reached."""
    if not is_remote(path):
        return os.stat(path).st_size
    system, inner = file_system(path)
    return int(_retried(f"size of {path}", lambda: system.info(inner)["size"]))


@contextlib.contextmanager
def open_stream(path: str) -> Iterator[BinaryIO]:
    """Open a file for one pass from front to back; failed requests are OSErrors."""
    if is_remote(path):
        system, inner = file_system(path)
        try:
            with system.open(inner, "rb", block_size=2**22) as stream:
                yield stream
        except OSError:
            raise
        except _network_errors() as error:
            raise OSError(f"{path}: {error}") from error
    else:
        with open(path, "rb") as stream:
            yield stream


def read_bytes(path: str) -> bytes:
    """Return the content of a small file; FileNotFoundError if it does not exist."""
    if is_remote(path):
        return _request(path, None, None)
    with open(path, "rb") as stream:
        return stream.read()


def read_first_line(path: str) -> bytes:
    """Return the first line with its newline; transfer no more of a remote file than needed."""
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
    """Return the bytes [start, start + size) of a remote file, fewer if it ends earlier.

    Raises:
        ConfigError: the server ignores range requests.
    """
    try:
        data = _request(url, start, start + size)
    except FileNotFoundError:
        raise
    except OSError:
        # Some protocols refuse a range that goes past the end of the file.
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
    system, inner = file_system(url)
    return bytes(
        _retried(
            f"{url}: bytes {start}..{end}", lambda: system.cat_file(inner, start=start, end=end)
        )
    )


def _retried(what: str, request: Callable[[], Any]) -> Any:
    """Return what a request gives; try again after 0.2, 1 and 5 seconds if it fails.

    Raises:
        OSError: the last attempt failed too, or the file does not exist or may not be read.
    """
    for pause in (*_RETRY_SECONDS, None):
        try:
            return request()
        except (FileNotFoundError, PermissionError):
            raise
        except _network_errors() as error:
            if pause is None:
                raise OSError(f"{what}: {error}") from error
            time.sleep(pause)
    raise AssertionError("unreachable: the last failure is raised")


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what a file system raises if a request fails; aiohttp's errors are not OSErrors."""
    client = sys.modules.get("aiohttp")
    return (OSError, client.ClientError) if client else (OSError,)


def write_atomically(path: str, data: bytes) -> None:
    """Write a file that is either complete or absent, even after a crash."""
    if is_remote(path):
        system, inner = file_system(path)
        if is_web(path):
            raise PermissionError("web servers can only be read from")
        try:
            system.pipe_file(inner, data)
        except _network_errors() as error:
            raise OSError(f"{path}: {error}") from error
        return
    write_bytes(path, data)


class RangeReader:
    """Reader of byte ranges that keeps a few local files open; safe to fork and to pickle."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, start: int, size: int) -> bytes:
        """Return the bytes [start, start + size), fewer if the file ends earlier."""
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
