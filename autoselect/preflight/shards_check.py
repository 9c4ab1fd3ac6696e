"""Check of the shards of a training for `autoselect doctor`."""

from __future__ import annotations

import glob
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.index import sidecar
from autoselect.data.paths import expand
from autoselect.data.quarantine import sufficient_budget
from autoselect.data.shards import ShardSet
from autoselect.data.storage import is_remote, read_first_line
from autoselect.preflight.estimates import GIB
from autoselect.preflight.finding import Finding, Subject
from autoselect.reference.resources import REFERENCE
from autoselect.training.validation import HELD_OUT, check_held_out
from autoselect.vlm.model_files import is_pointer

INDEX_THREADS = 16
"""Indexes that are looked for at the same time."""


def check_shards(subject: Subject) -> Finding:
    """Check the shards of the training and of its validation; missing indexes are not built."""
    config = subject.config
    found = _training_shards(subject)
    own = config.validation
    if found.status == "fail" or not own.every or own.shards == HELD_OUT:
        return found
    judging = _opened("validation.shards", own.shards)
    return judging if isinstance(judging, Finding) else found


def _training_shards(subject: Subject) -> Finding:
    pattern = subject.config.data.train_shards
    if pattern == REFERENCE:
        return Finding("shards", "ok", "the reference data, rendered at the first start")
    shards = _opened("data.train_shards", pattern)
    if isinstance(shards, Finding):
        return shards
    try:
        check_held_out(subject.config, len(shards), subject.deepspeed.total_batch)
    except ConfigError as error:
        return Finding("shards", "fail", str(error), "do what it says")
    total = sum(header.bytes for header in shards.headers)
    found = f"{len(shards.shards)} shards, {len(shards)} samples, {total / GIB:.2f} GiB"
    return _unusable(shards, found, subject.config.data.quarantine_budget)


def _opened(setting: str, pattern: str) -> ShardSet | Finding:
    """Open the shards of a setting; return the finding if one lacks an index or keys repeat."""
    try:
        named = expand(pattern)
        pointers = [shard for shard in named if is_pointer(Path(shard))]
        if pointers:
            found = f"{len(pointers)} shards are pointers of git-lfs, such as {pointers[0]}"
            return Finding("shards", "fail", found, "run `git lfs pull` where the shards lie")
        bare = without_index(named)
        if bare:
            found = f"{len(bare)} of {len(named)} shards have no index, such as {bare[0]}"
            fix = "run `autoselect shards index`, or training reads these whole when it starts"
            return Finding("shards", "warn", f"{found}; their content is not examined", fix)
        shards = ShardSet.open(pattern)
        shards.check_keys()
    except ConfigError as error:
        fix = f"correct {setting}; run `autoselect shards index` and `... shards verify`"
        return Finding("shards", "fail", _reason(pattern) or str(error), fix)
    return shards


def _unusable(shards: ShardSet, found: str, budget: float) -> Finding:
    """Return the finding about samples that the indexes know to be unusable in training."""
    faults, unanswered = len(shards.faults), shards.unanswered
    fixes = []
    if faults:
        found += f", {faults} unusable samples"
        fixes.append("run `autoselect shards verify --decode` and write the named shards again")
    if unanswered:
        found += f", {unanswered} samples with pictures but no answer"
        fixes.append("leave rows without an answer out and convert into an empty folder")
    if not fixes:
        return Finding("shards", "ok", found)
    total = len(shards) + faults
    over = faults + unanswered > budget * total
    if over:
        enough = sufficient_budget(faults + unanswered, total)
        fixes.append(f"or train without them: data.quarantine_budget={enough:g}")
    return Finding("shards", "fail" if over else "warn", found, "; ".join(fixes))


def _reason(pattern: str) -> str:
    """Return what is wrong with the folder of a local pattern; empty if nothing is."""
    folder = pattern if os.path.isdir(pattern) else os.path.dirname(pattern) or "."
    if is_remote(pattern) or pattern.startswith("pipe:") or glob.has_magic(folder):
        return ""
    if not os.path.isdir(folder):
        return f"the folder {folder} does not exist on {socket.gethostname()}"
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"the folder {folder} cannot be read: {error.strerror}"
    packed = [name for name in names if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz"))]
    if packed and not any(name.endswith(".tar") for name in names):
        return f"the shards in {folder} are compressed, such as {packed[0]}; unpack them to .tar"
    return ""


def without_index(shards: list[str]) -> list[str]:
    """Return the shards without an index beside them.

    Raises:
        ConfigError: an index cannot be read.
    """

    def lacks(shard: str) -> bool:
        try:
            read_first_line(sidecar(shard))
        except FileNotFoundError:
            return True
        except OSError as error:
            raise ConfigError(f"shard={shard}: its index cannot be read: {error}") from error
        return False

    with ThreadPoolExecutor(INDEX_THREADS) as pool:  # remote storage answers slowly
        missing = list(pool.map(lacks, shards))
    return [shard for shard, is_bare in zip(shards, missing, strict=True) if is_bare]
