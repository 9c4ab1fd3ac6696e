"""Shards on disk or remote: `ShardWriter` writes them, `ShardSet` reads samples by number."""

import functools
import hashlib
import logging
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from PIL import Image
from tqdm import tqdm

from autoselect.config import ConfigError
from autoselect.data import storage
from autoselect.data.decode import ImageError, ImageTooLarge, Limits, read_image
from autoselect.data.faults import BadSample, Fault, FaultKind, RecordError
from autoselect.data.index import (
    Entry,
    IndexHeader,
    IndexJob,
    IndexTable,
    index_shard,
    read_keys,
    read_table,
    sidecar,
)
from autoselect.data.order import WINDOW_CHUNKS
from autoselect.data.paths import expand
from autoselect.data.record import image_order, is_image, parse_record
from autoselect.data.writer import ShardWriter

__all__ = ["Sample", "ShardSet", "ShardWriter", "blank_sample"]

logger = logging.getLogger(__name__)

# Two windows of the order, if every chunk spans two shards.
_CACHED_TABLES = 4 * WINDOW_CHUNKS
_OPENING_THREADS = 16


@dataclass(frozen=True)
class Sample:
    """One sample as stored.

    Attributes:
        sample_id: number in the data set, 0..N-1; it seeds the sample's noise in training.
        images: encoded images, in the order in which the record refers to them.
        offset: start of the sample in its shard, in bytes.
        quarantined: the sample is unusable, and this is its `blank_sample`.
    """

    key: str
    sample_id: int
    record: dict[str, Any]
    images: tuple[bytes, ...]
    shard: str = ""
    offset: int = 0
    limits: Limits = field(default=Limits(), repr=False)
    quarantined: bool = False

    @functools.cached_property
    def pictures(self) -> tuple[Image.Image, ...]:
        """Return the images in RGB, decoded at first use and kept.

        Raises:
            BadSample: an image is damaged or exceeds a cap.
        """
        pictures = []
        for number, data in enumerate(self.images):
            try:
                pictures.append(read_image(data, self.limits))
            except ImageError as error:
                kind: FaultKind = "too_large" if isinstance(error, ImageTooLarge) else "undecodable"
                detail = f"image {number}: {error}"
                fault = Fault(kind, self.shard, self.key, self.offset, detail)
                raise BadSample(fault) from error
        return tuple(pictures)


def blank_sample(sample_id: int, fault: Fault) -> Sample:
    """Return a stand-in for an unusable sample: without an answer it has no weight in any loss.

    It keeps the size of micro-batches and the layout of global batches.
    """
    record = {"id": fault.key, "conversations": [{"from": "human", "value": ""}]}
    return Sample(fault.key, sample_id, record, (), fault.shard, fault.offset, quarantined=True)


class ShardSet:
    """The samples of a list of shards, numbered in the order of the list.

    Create it with `ShardSet.open`. Instances can be pickled and used after a fork.
    """

    def __init__(
        self,
        shards: Sequence[str],
        indexes: Sequence[str],
        headers: Sequence[IndexHeader],
        limits: Limits | None = None,
    ) -> None:
        self.shards = list(shards)
        self.limits = limits
        self.headers = list(headers)
        self._indexes = list(indexes)
        self._ends = list(accumulate(header.samples for header in headers))
        self._reader = storage.RangeReader()
        self._table = functools.lru_cache(_CACHED_TABLES)(self._load_table)

    @classmethod
    def open(
        cls,
        paths: str | Sequence[str],
        *,
        limits: Limits | None = None,
        index_folder: str | None = None,
        allow_pipe: bool = False,
        accept_truncated: bool = False,
    ) -> "ShardSet":
        """Open shards and build the indexes that are missing.

        Args:
            paths: a folder, a tar file, a pattern with `{000..012}` or `*`, a URL, or a list of
                these.
            limits: caps on members and images; None for those stored in each index, or the
                defaults if the index is built now.
            index_folder: folder of the indexes; None if they lie beside the shards.
            allow_pipe: run `pipe:` commands; their output is kept in `index_folder`.
            accept_truncated: accept shards that were already cut when they were indexed.

        Raises:
            ConfigError: no usable shards, or an index does not belong to its shard.
        """
        shards = expand(paths, allow_pipe=allow_pipe, pipe_folder=index_folder)
        indexes = [sidecar(shard, index_folder) for shard in shards]
        jobs = [
            IndexJob(shard, index_folder, limits or Limits(), cut_is_usable=True)
            for shard in shards
        ]
        # Threads, because opening remote shards is mostly waiting for answers.
        with ThreadPoolExecutor(_OPENING_THREADS) as pool:
            opened = pool.map(functools.partial(_open_shard, accept_truncated), jobs)
            headers = list(
                tqdm(opened, "opening shards", len(jobs), unit="shard", disable=None, delay=2)
            )
        if not any(header.samples for header in headers):
            faults = [fault for header in headers for fault in header.faults]
            raise ConfigError(
                f"paths={paths!r} hold no usable samples in {len(shards)} shards; correct what "
                f"`autoselect shards verify` lists, first: {faults[0] if faults else 'nothing'}"
            )
        return cls(shards, indexes, headers, limits)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def digest(self) -> str:
        """Return a SHA-256 over the indexes, equal exactly if samples and order are equal."""
        parts = (f"{h.samples} {h.bytes} {h.sha256} {h.table_sha256}\n" for h in self.headers)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @property
    def faults(self) -> list[Fault]:
        """Return the faults found by indexing; their samples have no number here."""
        return [fault for header in self.headers for fault in header.faults]

    @property
    def unanswered(self) -> int:
        """Return the number of samples with a picture and without any answer."""
        return sum(header.unanswered for header in self.headers)

    def check_keys(self) -> None:
        """Raise ConfigError if a key comes twice, in one shard or in two."""
        seen: dict[str, int] = {}
        for number, (path, header) in enumerate(zip(self._indexes, self.headers, strict=True)):
            with _reading(f"index={path}"):
                keys = read_keys(path, header)
            for key in keys:
                if (first := seen.setdefault(key, number)) != number:
                    table = self._table(number)
                    offset = table.members(table.keys.index(key))[0].start
                    raise ConfigError(
                        f"key={key!r} is in {self.shards[first]} and again in "
                        f"{self.shards[number]} at byte {offset}; write one of them again with "
                        "other keys (--key-prefix of `autoselect shards convert-llava` and "
                        "`convert-captions`)"
                    )

    def locate(self, sample_id: int) -> tuple[int, str, list[Entry]]:
        """Return shard number, key and members of a sample; read the shard's index if needed."""
        if not 0 <= sample_id < len(self):
            raise IndexError(f"sample_id={sample_id} is not in 0..{len(self) - 1}")
        number = bisect_right(self._ends, sample_id)
        table = self._table(number)
        row = sample_id - self._ends[number] + self.headers[number].samples
        return number, table.keys[row], table.members(row)

    def extent(self, sample_id: int) -> tuple[int, int]:
        """Return the number of images and the bytes of the record: the longer the row, the more."""
        _, _, entries = self.locate(sample_id)
        images = sum(is_image(entry.suffix) for entry in entries)
        return images, sum(entry.size for entry in entries if entry.suffix == "json")

    def find(self, shard: str, key: str) -> int | None:
        """Return the number of the sample with this shard and key; None if it is not usable."""
        if shard not in self.shards:
            return None
        number = self.shards.index(shard)
        keys = self._table(number).keys
        if key not in keys:
            return None
        return self._ends[number] - self.headers[number].samples + keys.index(key)

    def __getitem__(self, sample_id: int) -> Sample:
        """Read one sample with one range request and check every byte of it.

        Raises:
            BadSample: the shard is cut or damaged there, or the record breaks a rule.
            IndexError: the number is out of range.
            ConfigError: the shard or its index cannot be reached.
        """
        number, key, entries = self.locate(sample_id)
        shard, start = self.shards[number], entries[0].start
        limits = self.limits or self.headers[number].limits
        try:
            with _reading(f"shard={shard}"):
                members = self._read_members(shard, entries, limits)
            record = parse_record(members["json"])
            suffixes = image_order(record, key, list(members))
        except RecordError as error:
            raise BadSample(Fault(error.kind, shard, key, start, str(error))) from error
        images = tuple(members[suffix] for suffix in suffixes)
        return Sample(key, sample_id, record, images, shard, start, limits)

    def usable(self) -> Iterator[Sample]:
        """Yield the usable samples in order, decoded; log a warning for each of the others."""
        for sample_id in range(len(self)):
            try:
                sample = self[sample_id]
                _ = sample.pictures
            except BadSample as error:
                logger.warning("left out: %s", error)
            else:
                yield sample

    def _read_members(self, shard: str, entries: list[Entry], limits: Limits) -> dict[str, bytes]:
        start, end = entries[0].start, entries[-1].end
        for entry in entries:
            if entry.size > limits.member_bytes:
                raise RecordError(
                    "too_large",
                    f"{entry.suffix} has {entry.size} bytes, the cap is {limits.member_bytes}",
                )
        # A view, because slices of bytes are copies.
        data = memoryview(self._reader.read(shard, start, end - start))
        members = {}
        for entry in entries:
            piece = data[entry.start - start : entry.end - start]
            if len(piece) < entry.end - entry.start:
                raise RecordError(
                    "truncated",
                    f"{entry.suffix} at byte {entry.start} has {len(piece)} of its "
                    f"{entry.end - entry.start} bytes",
                )
            if zlib.crc32(piece) != entry.crc:
                raise RecordError(*_damage(piece, entry))
            members[entry.suffix] = bytes(piece[entry.data - entry.start :])
        return members

    def _load_table(self, number: int) -> IndexTable:
        with _reading(f"index={self._indexes[number]}"):
            return read_table(self._indexes[number], self.headers[number])

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet, (self.shards, self._indexes, self.headers, self.limits)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Raise ConfigError for a file that was there when the shards were opened, and now fails."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be read any more: {error}; mend the storage, then start again"
        ) from error


def _damage(piece: memoryview, entry: Entry) -> tuple[FaultKind, str]:
    """Return whether the header or the payload of a member changed, and a description."""
    from tarfile import HeaderError, TarInfo

    try:
        TarInfo.frombuf(bytes(piece[:512]), "utf-8", "surrogateescape")
    except HeaderError as error:
        return "header", f"{entry.suffix}: damaged tar header at byte {entry.start}: {error}"
    return "payload", f"{entry.suffix}: payload at byte {entry.data} differs from its checksum"


def _open_shard(accept_truncated: bool, job: IndexJob) -> IndexHeader:
    """Return the header of a shard's index, built if missing.

    A shard that was cut before indexing is refused, because its length is unknown.
    """
    header = index_shard(job)
    if header.truncated and not accept_truncated:
        raise ConfigError(
            f"shard={job.shard} was cut before it was indexed ({header.faults[-1].detail}), so the "
            "number of lost samples is unknown; restore it, or leave it out of the shards"
        )
    return header
