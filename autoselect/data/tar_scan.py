"""Scan a tar stream once without losing anything silently.

Python's `tarfile` and WebDataset stop at a damaged header without an error. This scan reports it,
continues at the next valid header, and reports a missing end marker too.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from autoselect.config import ConfigError
from autoselect.data.faults import Fault, FaultKind

BLOCK = 512
_PIECE = 2**20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Member:
    """A file in the archive, or a link to one.

    Attributes:
        name: path inside the archive.
        start: offset of its first header block, in bytes.
        data: offset of its payload, in bytes.
        size: length of the payload, in bytes.
        crc: CRC-32 of everything from `start` to the end of the payload, headers included.
        payload: the payload if `TarScan` keeps it, else empty.
        link: the file that a link names, which is not followed; empty for a regular file.
    """

    name: str
    start: int
    data: int
    size: int
    crc: int
    payload: bytes
    link: str = ""


def split_name(name: str) -> tuple[str, str] | None:
    """Return key and suffix, cut at the first dot of the file name as WebDataset does.

    None if the name lacks a key or a suffix, or begins with `__`.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    if not stem or not dot or stem.startswith("__"):
        return None
    return folder + slash + stem, suffix.lower()


class TarScan:
    """Iterator over the members of a tar stream; `faults`, `bytes` and `sha256` grow meanwhile.

    Members whose last suffix is one of `kept`, in lower case, keep their payload, up to
    `member_bytes` bytes. `shard` names the archive in messages. Iterating raises ConfigError for
    gzip streams.
    """

    def __init__(
        self, stream: BinaryIO, shard: str, kept: Sequence[str], member_bytes: int
    ) -> None:
        self.faults: list[Fault] = []
        self.truncated = False
        self.bytes = 0
        self._stream = stream
        self._shard = shard
        self._kept = tuple(f".{suffix}" for suffix in kept)
        self._member_bytes = member_bytes
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Member]:
        start, crc, overrides = 0, 0, dict[str, str]()
        while (info := self._next_header()) is not None:
            block, header = info
            if not overrides:
                start = self.bytes - BLOCK
            crc = zlib.crc32(block, crc if overrides else 0)
            name = overrides.get("path", header.name)
            size = int(overrides.get("size", header.size))
            data = self.bytes
            extended = header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
            keep = extended or name.lower().endswith(self._kept)
            read = self._payload(size, keep and size <= self._member_bytes, extended, crc)
            if read is None:
                key = (split_name(name) or (name, ""))[0]
                self._truncate(key, start, f"{name} has {self.bytes - data} of {size} bytes")
                return
            payload, crc = read
            if extended:
                try:
                    overrides |= _overrides(header.type, payload)
                except ValueError as error:
                    self._fault("header", "", start, f"damaged extended header: {error}")
                continue
            overrides = {}
            if header.isreg() or header.islnk() or header.issym():
                yield Member(name, start, data, size, crc, payload, header.linkname)

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        self._hash.update(data)
        self.bytes += len(data)
        return data

    def _next_header(self) -> tuple[bytes, tarfile.TarInfo] | None:
        """Return the next valid header block, None at the end; report damage on the way."""
        lost, zeros = False, 0
        while len(block := self._read(BLOCK)) == BLOCK:
            if self.bytes == BLOCK and block.startswith(_GZIP):
                raise ConfigError(
                    f"shard={self._shard} is gzip-compressed; samples are read by their offset, "
                    "so decompress it first"
                )
            if not block.strip(b"\0"):
                zeros += 1
                continue
            if zeros and not lost:
                start = self.bytes - (zeros + 1) * BLOCK
                self._fault("header", "", start, f"{zeros} empty blocks inside of the archive")
                lost = True
            zeros = 0
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if info.size < 0:
                    raise tarfile.HeaderError(f"a size of {info.size} bytes")
            except tarfile.HeaderError as error:
                if not lost:
                    self._fault("header", "", self.bytes - BLOCK, f"damaged tar header: {error}")
                lost = True
                continue
            return block, info
        if len(block) or zeros < 2:
            self._truncate("", self.bytes, "the archive ends without its end marker")
        return None

    def _payload(self, size: int, keep: bool, extended: bool, crc: int) -> tuple[bytes, int] | None:
        """Return the payload (if kept) and the updated CRC, or None if the stream ends early.

        The padding of an extended header lies inside the member, so the CRC covers it.
        """
        kept, left = [], size
        while left:
            piece = self._read(min(left, _PIECE))
            if not piece:
                return None
            crc = zlib.crc32(piece, crc)
            left -= len(piece)
            if keep:
                kept.append(piece)
        padding = self._read(-size % BLOCK)
        return b"".join(kept), zlib.crc32(padding, crc) if extended else crc

    def _fault(self, kind: FaultKind, key: str, offset: int, detail: str) -> None:
        self.faults.append(Fault(kind, self._shard, key, offset, detail))

    def _truncate(self, key: str, offset: int, detail: str) -> None:
        self.truncated = True
        self._fault("truncated", key, offset, detail)


def _overrides(kind: bytes, payload: bytes) -> dict[str, str]:
    """Return name and size of the next member from a pax or GNU long-name block."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": payload.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    found = {}
    while payload:
        digits, _, rest = payload.partition(b" ")
        length = int(digits)
        if not len(digits) < length <= len(payload):
            raise ValueError(f"a record of {length} bytes in a block of {len(payload)}")
        name, _, value = rest[: length - len(digits) - 1].rstrip(b"\n").partition(b"=")
        if name in (b"path", b"size"):
            found[name.decode()] = value.decode("utf-8", "surrogateescape")
        payload = payload[length:]
    int(found.get("size", 0))
    return found
