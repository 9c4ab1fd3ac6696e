"""The index beside every shard: which samples it holds, where they lie, and what is wrong with it.

`name.tar.index.jsonl` holds lines of JSON: a header (counts, sizes, hashes, faults and caps), the
list of all keys, and one line per sample with its members as `[suffix, start, data, size, crc]`.
Opening a data set reads only headers; the other lines are read when a sample of that shard is due.
"""

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from autoselect.config import ConfigError
from autoselect.data import storage
from autoselect.data.decode import Limits
from autoselect.data.faults import Fault, FaultKind, RecordError
from autoselect.data.record import image_order, lacks_answer, parse_record
from autoselect.data.tar_scan import Member, TarScan, split_name

logger = logging.getLogger(__name__)

FORMAT = "autoselect-shard-index"
VERSION = 1
FOREIGN = (
    "the index belongs to another file; restore the shard, or index it as it is with `autoselect "
    "shards index --rebuild`"
)
INDEX_FOLDER = "AUTOSELECT_INDEX_FOLDER"


class Entry(NamedTuple):
    """Position of one member of a sample; offsets and sizes in bytes as in `tar_scan.Member`."""

    suffix: str
    start: int
    data: int
    size: int
    crc: int

    @property
    def end(self) -> int:
        return self.data + self.size


@dataclass(frozen=True)
class IndexHeader:
    """First line of an index.

    Attributes:
        samples: number of usable samples.
        bytes: size of the shard.
        table_sha256: hash of the other lines of the index.
        faults: faults of the samples that are not usable.
        truncated: the shard ends early, so an unknown number of samples is missing.
        unanswered: number of usable samples with a picture and without any answer, which training
            counts as unusable and evaluation can ask; 0 in indexes of earlier versions.
        limits: caps for everyone who reads the shard.
    """

    samples: int
    bytes: int
    sha256: str
    table_sha256: str
    faults: tuple[Fault, ...]
    truncated: bool
    unanswered: int = 0
    limits: Limits = Limits()


@dataclass(frozen=True)
class IndexTable:
    """The other lines of an index: keys, and one unparsed line per sample, in shard order."""

    keys: list[str]
    lines: list[bytes]

    def members(self, row: int) -> list[Entry]:
        return [Entry(*entry) for entry in json.loads(self.lines[row])]


@dataclass(frozen=True)
class ShardIndex:
    header: IndexHeader
    table: IndexTable


class _Samples:
    """Group members into samples and set faulty ones aside."""

    def __init__(self, shard: str, limits: Limits) -> None:
        self.table = IndexTable([], [])
        self.faults: list[Fault] = []
        self.unanswered = 0
        self._shard = shard
        self._limits = limits
        self._seen: set[str] = set()
        self._key: str | None = None
        self._members: list[tuple[str, Member]] = []

    def add(self, member: Member) -> None:
        split = split_name(member.name)
        if split is None:
            return
        key, suffix = split
        if key != self._key:
            self.finish()
            self._key = key
        self._members.append((suffix, member))

    def finish(self, broken: str | None = None) -> None:
        """End the current sample; skip it if its key is `broken`, which is reported already."""
        key, members = self._key, self._members
        self._key, self._members = None, []
        if key is None or key == broken:
            return
        try:
            self._check(key, members)
        except RecordError as error:
            self.faults.append(Fault(error.kind, self._shard, key, members[0][1].start, str(error)))
            return
        finally:
            self._seen.add(key)
        self.table.keys.append(key)
        self.table.lines.append(
            _dump([Entry(suffix, m.start, m.data, m.size, m.crc) for suffix, m in members])
        )

    def _check(self, key: str, members: list[tuple[str, Member]]) -> None:
        by_suffix = dict(members)
        if key in self._seen or len(by_suffix) < len(members):
            raise RecordError("duplicate_key", "the key or a member of it comes twice")
        for suffix, member in members:
            if member.link:
                raise RecordError(
                    "unsupported",
                    f"{suffix} is a link to {member.link}; store the file itself, such as by "
                    "`tar --dereference --hard-dereference`",
                )
            if member.size > self._limits.member_bytes:
                raise RecordError(
                    "too_large",
                    f"{suffix} has {member.size} bytes, the cap is {self._limits.member_bytes}",
                )
        if "json" not in by_suffix:
            raise RecordError("missing_member", f"no json among {sorted(by_suffix)}")
        record = parse_record(by_suffix["json"].payload)
        pictures = image_order(record, key, list(by_suffix))
        self.unanswered += bool(pictures) and lacks_answer(record["conversations"])


def build_index(shard: str, limits: Limits | None = None) -> ShardIndex:
    """Read a shard once and index it; the header's `faults` list everything wrong with it.

    Args:
        shard: path or URL of a tar file in the WebDataset layout.
        limits: caps stored in the index; a member above the cap makes its sample unusable.

    Raises:
        ConfigError: the shard is compressed or holds no samples.
        OSError: the shard cannot be read.
    """
    limits = limits or Limits()
    samples = _Samples(shard, limits)
    with storage.open_stream(shard) as stream:
        scan = TarScan(stream, shard, ("json",), limits.member_bytes)
        for member in scan:
            samples.add(member)
    samples.finish(broken=scan.faults[-1].key if scan.truncated else None)
    faults = sorted(scan.faults + samples.faults, key=lambda fault: fault.offset)
    if not samples.table.keys and not faults:
        raise ConfigError(f"shard={shard} holds no samples; is it a WebDataset tar file?")
    header = IndexHeader(
        samples=len(samples.table.keys),
        bytes=scan.bytes,
        sha256=scan.sha256,
        table_sha256=hashlib.sha256(_table_lines(samples.table)).hexdigest(),
        faults=tuple(faults),
        truncated=scan.truncated,
        unanswered=samples.unanswered,
        limits=limits,
    )
    return ShardIndex(header, samples.table)


@dataclass(frozen=True)
class IndexJob:
    """A shard to index, the folder for the index, the caps, and whether to replace an index.

    `cut_is_usable` accepts an index of which the shard lost the end: each lost sample is known and
    is counted when it is due.
    """

    shard: str
    index_folder: str | None = None
    limits: Limits = Limits()
    rebuild: bool = False
    cut_is_usable: bool = False


def index_shard(job: IndexJob) -> IndexHeader:
    """Return the header of the shard's index; write the index if it does not exist.

    Raises:
        ConfigError: the shard or its index cannot be read or do not belong together, or the index
            cannot be written.
    """
    path = sidecar(job.shard, job.index_folder)
    try:
        if not job.rebuild:
            with contextlib.suppress(FileNotFoundError):
                header = read_header(path, job.shard)
                _check_size(job, path, header)
                return header
        index = build_index(job.shard, job.limits)
    except OSError as error:
        raise ConfigError(f"shard={job.shard} cannot be read: {error}; check the path") from error
    try:
        write_index(index, path)
    except (OSError, NotImplementedError) as error:
        raise ConfigError(
            f"index={path} cannot be written: {error}; set {INDEX_FOLDER} to a folder that can, "
            "the same for all commands and nodes, or copy the shards"
        ) from error
    return index.header


def _check_size(job: IndexJob, path: str, header: IndexHeader) -> None:
    size = storage.file_size(job.shard)
    fault = size_fault(job.shard, path, header, size)
    if fault and not (job.cut_is_usable and size < header.bytes):
        raise ConfigError(fault)
    if fault:
        logger.warning("%s", fault)


def size_fault(shard: str, path: str, header: IndexHeader, size: int) -> str:
    """Return what is wrong if a shard of `size` bytes has this index; empty if nothing is."""
    if size == header.bytes:
        return ""
    cut = "the shard was cut, or " if size < header.bytes else ""
    return f"shard={shard} has {size} bytes, its index {path} says {header.bytes}: {cut}{FOREIGN}"


def sidecar(shard: str, folder: str | None = None) -> str:
    """Return the path of the shard's index: in `folder`, or beside the shard.

    Without `folder` the environment variable `AUTOSELECT_INDEX_FOLDER` may name one, for shards
    beside which nothing can be written. There a hash of the shard's path tells shards with the same
    file name apart.
    """
    folder = folder or os.environ.get(INDEX_FOLDER)
    if not folder:
        return f"{shard}.index.jsonl"
    mark = hashlib.sha256(shard.encode()).hexdigest()[:12]
    return f"{folder.rstrip('/')}/{shard.rpartition('/')[2]}.{mark}.index.jsonl"


def write_index(index: ShardIndex, path: str) -> None:
    storage.write_atomically(path, _header_line(index.header) + _table_lines(index.table))


def read_header(path: str, shard: str) -> IndexHeader:
    """Read the first line of an index; raise ConfigError if it is damaged or of another version."""
    return _parse_header(storage.read_first_line(path), path, shard)


def read_table(path: str, header: IndexHeader) -> IndexTable:
    """Read the other lines; raise ConfigError if they are damaged or belong to another header."""
    keys, *lines = _rest(path, header).splitlines(keepends=True)
    return IndexTable(json.loads(keys), lines)


def read_keys(path: str, header: IndexHeader) -> list[str]:
    """Read only the keys, which is faster than `read_table`."""
    return json.loads(_rest(path, header).partition(b"\n")[0])


def _rest(path: str, header: IndexHeader) -> bytes:
    rest = storage.read_bytes(path).partition(b"\n")[2]
    if hashlib.sha256(rest).hexdigest() != header.table_sha256:
        raise ConfigError(
            f"index={path} is damaged: its table does not match its header; delete it and run "
            "`autoselect shards index` again"
        )
    return rest


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _table_lines(table: IndexTable) -> bytes:
    return _dump(table.keys) + b"".join(table.lines)


def _header_line(header: IndexHeader) -> bytes:
    faults = [[f.kind, f.key, f.offset, f.detail] for f in header.faults]
    changed = {"faults": faults, "limits": asdict(header.limits)}
    fields = {"format": FORMAT, "version": VERSION} | vars(header) | changed
    return _dump(fields | {"check": _check_sum(fields)})


def _check_sum(fields: dict[str, Any]) -> str:
    """Return a checksum that reveals a damaged header."""
    return hashlib.sha256(_dump(fields)).hexdigest()[:16]


def _parse_header(line: bytes, path: str, shard: str) -> IndexHeader:
    try:
        fields = json.loads(line)
        if fields.pop("check") != _check_sum(fields):
            raise ValueError("the header differs from its checksum")
        if (fields.pop("format"), fields.pop("version")) != (FORMAT, VERSION):
            raise ValueError("another format or version")
        faults: list[tuple[FaultKind, str, int, str]] = fields.pop("faults")
        limits = Limits(**fields.pop("limits", {}))  # absent in indexes of earlier versions
        return IndexHeader(
            faults=tuple(
                Fault(kind, shard, key, offset, detail) for kind, key, offset, detail in faults
            ),
            limits=limits,
            **fields,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"index={path} is not a version-{VERSION} shard index ({error}); delete it and run "
            "`autoselect shards index` again"
        ) from error
