"""Read text and JSON as people's tools write them, or say what is wrong with the file.

Compressed files (gzip, bzip2, xz, a zip of one file) are unpacked. Text is UTF-8, or UTF-16 or
UTF-32 as its byte-order mark or its zero bytes tell. Lines end with LF, CRLF or CR, and with
nothing else, because JSON may hold other Unicode line separators inside of text.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.data.content import content_of
from autoselect.data.turns import TURN_KEYS, plain_key

_LINE = re.compile(r"\r\n|\n|\r")
_BLANK = re.compile(r"\s*")
_TRAILING_COMMA = re.compile(r",\s*$")
_DECODER = json.JSONDecoder()
_UNPACKING_ERRORS = (
    *(OSError, EOFError, ValueError, RuntimeError, MemoryError),
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)


def read_text(path: Path, wanted: str = "text") -> str:
    """Return the text of a file without its byte-order mark; unpack it if it is compressed.

    `wanted` is what the file should be, for messages.

    Raises:
        ConfigError: the file cannot be read or unpacked, or is not text.
    """
    return _decoded(path, _unpacked(path, _read(path), wanted))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without their ends; errors are those of `read_text`."""
    return _LINE.split(read_text(path))


def read_json_file(path: Path) -> Any:
    """Return the value of a JSON file; raise ConfigError if it cannot be read or parsed."""
    text = read_text(path, "JSON")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {_cause(error, text)}") from error


def read_json_lines(path: Path) -> list[Any]:
    """Return the values of a file of JSON lines, or of one JSON list."""
    return _values(path, read_text(path, "JSON"))


def read_json_rows(source: Path) -> tuple[list[Any], str]:
    """Return the rows of a file, a JSON list or JSON lines, and the SHA-256 of the file.

    Raises:
        ConfigError: the file cannot be read, is neither, or holds no rows.
    """
    try:
        data = _read(source)
        text = _decoded(source, _unpacked(source, data, "JSON"))
        rows = _values(source, text)
    except ConfigError as error:
        raise ConfigError(f"source={error}") from error
    alone = len(rows) == 1 and not text.lstrip().startswith("[")
    if alone and isinstance(rows[0], dict) and not _may_be_row(rows[0]):
        raise ConfigError(
            f"source={source} holds one object with the keys {', '.join(list(rows[0])[:8])}, not "
            "rows with conversations or a caption; write the list of rows alone, or one row per "
            "line"
        )
    if not rows:
        raise ConfigError(f"source={source} holds no rows; give a file with at least one")
    return rows, hashlib.sha256(data).hexdigest()


def _may_be_row(value: dict[str, Any]) -> bool:
    """Return False for an object whose values are objects or lists of them, but for its turns."""
    nested = [
        isinstance(own, dict) or (isinstance(own, list) and any(isinstance(o, dict) for o in own))
        for key, own in value.items()
        if plain_key(key) not in TURN_KEYS
    ]
    return any(plain_key(key) in TURN_KEYS for key in value) or not any(nested)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; check the path") from error


def _unpacked(path: Path, data: bytes, wanted: str) -> bytes:
    """Return the data, unpacked once if compressed; raise ConfigError for other kinds of files."""
    what = content_of(data[:1024])
    if unpack := _UNPACKERS.get(what or ""):
        try:
            data = unpack(data)
        except _UNPACKING_ERRORS as error:
            raise ConfigError(
                f"{path} is {what}, and unpacking it failed: {error}; unpack it by hand, or copy "
                "or download it again"
            ) from error
        what = content_of(data[:1024])
    if what is None:
        return data
    packed = "compressed" in what or "archive" in what
    fix = "unpack it" if packed else "check the path"
    raise ConfigError(f"{path} is not {wanted}: it is {what}; {fix}")


def _only_file(data: bytes) -> bytes:
    """Return the one file in a zip archive; raise ValueError if there are more."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [one.filename for one in archive.infolist() if not one.is_dir()]
        names = [name for name in names if not name.startswith("__MACOSX/")]
        if len(names) != 1:
            raise ValueError(f"it holds {len(names)} files instead of one")
        return archive.read(names[0])


_UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip-compressed": gzip.decompress,
    "bzip2-compressed": bz2.decompress,
    "xz-compressed": lzma.decompress,
    "a zip archive": _only_file,
}


def _decoded(path: Path, data: bytes) -> str:
    """Decode text; half surrogate pairs stay, because the rows that hold them are refused alone."""
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding, "surrogatepass").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not {encoding.upper()}: byte 0x{data[error.start]:02x} in line {line}; "
            "convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8` or `-f GB18030`"
        ) from error


def _values(path: Path, text: str) -> list[Any]:
    """Return the values of a JSON list, of JSON lines, or of JSON values one after the other."""
    try:
        value = json.loads(text)
        return value if isinstance(value, list) else [value]
    except (ValueError, RecursionError) as error:
        whole = error
    lines = [line for line in _LINE.split(text) if line.strip()]
    if text.lstrip().startswith("[") and not _is_json(lines[0]):
        raise ConfigError(
            f"{path} must hold a JSON list or JSON lines, but: {_cause(whole, text)}"
        ) from whole
    return list(_sequence(path, text))


def _sequence(path: Path, text: str) -> Iterator[Any]:
    """Yield values that follow each other, with white space or one comma between them."""
    place = _BLANK.match(text).end()  # type: ignore[union-attr]
    while place < len(text):
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} must hold a JSON list or JSON lines, but: {_cause(error, text)}"
            ) from error
        yield value
        place = _BLANK.match(text, place).end()  # type: ignore[union-attr]
        if text.startswith(",", place):
            place = _BLANK.match(text, place + 1).end()  # type: ignore[union-attr]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _cause(error: Exception, text: str) -> str:
    """Return why JSON could not be parsed, with the line, as the author would say it."""
    if not isinstance(error, json.JSONDecodeError):
        return (
            "its values are nested too deeply" if isinstance(error, RecursionError) else str(error)
        )
    before, after = text[: error.pos], text[error.pos :].strip()
    place = f"line {error.lineno} column {error.colno}"
    if _TRAILING_COMMA.search(before) and after[:1] in ("]", "}"):
        return f"{place} follows a comma that no value follows; remove the comma"
    if not after or error.msg.startswith("Unterminated string"):
        return f"it ends inside of a value that begins in {place}; was it cut short?"
    if after.startswith("'"):
        return f"{place} has single quotes; JSON needs double quotes"
    return f"{error.msg}: {place}"
