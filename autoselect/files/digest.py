"""Digests that identify the weights of a model by the content of their files."""

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ENDS = 1 << 20
"""Bytes at the start and at the end of a file that digests of earlier versions read."""

BLOB = re.compile(r"[0-9a-f]{64}")
JOINT = "+"


def weights_digest(config: Path, files: Sequence[Path]) -> str:
    """Return a digest of a model's weights: two sha256, of this version and of earlier ones.

    The first covers the content of every weights file. The second is what earlier versions wrote:
    it covers `config.json` and name, size, first and last MiB of every safetensors file beside it,
    so models that differ only in the middle of a file share it. `same_weights` compares both kinds.

    Args:
        config: `config.json` of the model.
        files: weight files that transformers loads.
    """
    with ThreadPoolExecutor(8) as pool:  # hashing releases the interpreter lock
        contents = pool.map(sha256_of, files)
        lines = [f"{file.name} {content}\n" for file, content in zip(files, contents, strict=True)]
    return f"{hashlib.sha256(''.join(lines).encode()).hexdigest()}{JOINT}{quick_digest(config)}"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file; the hub's cache has it as the name of the blob."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and BLOB.fullmatch(blob.name):
        return blob.name
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def same_weights(one: str | None, other: str | None) -> bool:
    """Return True if two digests name the same weights; one may be of an earlier version."""
    if one is None or other is None or (JOINT in one) == (JOINT in other):
        return one == other
    return one.rpartition(JOINT)[2] == other.rpartition(JOINT)[2]


def quick_digest(config: Path) -> str:
    """Return the second half of `weights_digest`, which reads little; see there."""
    digest = hashlib.sha256(config.read_bytes())
    for file in sorted(config.parent.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(ENDS))
            stream.seek(max(0, size - ENDS))
            digest.update(stream.read())
    return digest.hexdigest()
