"""Compare shards with their indexes, byte by byte, and report everything that differs."""

import hashlib
from dataclasses import dataclass

from autoselect.config import ConfigError
from autoselect.data import storage
from autoselect.data.faults import BadSample, Fault
from autoselect.data.index import FOREIGN, read_header, read_keys, sidecar, size_fault
from autoselect.data.shards import ShardSet

_PIECE = 2**22


@dataclass(frozen=True)
class VerifyJob:
    """A shard to verify; `index_folder` is None if the index lies beside it."""

    shard: str
    index_folder: str | None = None
    decode: bool = False


@dataclass(frozen=True)
class VerifyReport:
    """Number of usable samples according to the index, and every fault."""

    samples: int
    faults: list[Fault]


def verify_shard(job: VerifyJob) -> VerifyReport:
    """Read a shard completely and compare it with its index.

    Faults found by indexing are reported again. If the shard differs from its index, its samples
    are read one by one to find the damaged ones. If the shard is larger, or not one of several
    samples is the indexed one, only the index is reported, as that of another file.
    """
    path = sidecar(job.shard, job.index_folder)
    try:
        header = read_header(path, job.shard)
        shards = ShardSet([job.shard], [path], [header])
        read_keys(path, header)
        size, sha256 = _hash(job.shard)
        same = (size, sha256) == (header.bytes, header.sha256)
        other_size = size_fault(job.shard, path, header, size)
        if size > header.bytes:
            raise ConfigError(other_size)
        found = [] if same and not job.decode else _bad_samples(shards, job.decode)
        if not same and len(found) == header.samples > 1:
            raise ConfigError(
                other_size or f"shard={job.shard}: no sample is as indexed: {FOREIGN}"
            )
    except FileNotFoundError as error:
        detail = f"{error}; if the index is missing, run `autoselect shards index`"
        return VerifyReport(0, [Fault("unreadable", job.shard, "", 0, detail)])
    except (ConfigError, OSError) as error:
        return VerifyReport(0, [Fault("unreadable", job.shard, "", 0, str(error))])
    if other_size:
        found.append(Fault("truncated", job.shard, "", size, other_size))
    elif not same and not found:
        detail = f"the shard ({size} bytes) differs from its index outside of every sample"
        found.append(Fault("payload", job.shard, "", 0, detail))
    return VerifyReport(header.samples, [*header.faults, *found])


def _hash(path: str) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with storage.open_stream(path) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def _bad_samples(shards: ShardSet, decode: bool) -> list[Fault]:
    faults = []
    for sample_id in range(len(shards)):
        try:
            sample = shards[sample_id]
            if decode:
                _ = sample.pictures
        except BadSample as error:
            faults.append(error.fault)
    return faults
