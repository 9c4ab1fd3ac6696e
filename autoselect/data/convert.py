"""Convert LLaVA-style JSON and image folders to shards: parallel, restartable, deterministic.

Rows [n * S, (n + 1) * S) of the input become shard n, so the result does not depend on the number
of workers or on interruptions. A finished shard leaves a note in `.convert/`, and a restart skips
it, without a look at its pictures. Unusable rows are listed in `rejected.jsonl`.
"""

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from autoselect.config import ConfigError
from autoselect.config.bounds import at_least
from autoselect.data.decode import (
    ImageError,
    ImageTooLarge,
    Limits,
    embedded_image,
    read_capped,
    read_image,
)
from autoselect.data.faults import FaultKind, RecordError
from autoselect.data.index import sidecar
from autoselect.data.parallel import map_processes
from autoselect.data.record import check_conversation, lacks_answer
from autoselect.data.row_keys import read_row
from autoselect.data.storage import is_web
from autoselect.data.text_files import read_json_rows
from autoselect.data.writer import ShardWriter, check_key
from autoselect.files.atomic import write_bytes, write_text

logger = logging.getLogger(__name__)

REJECTED = "rejected.jsonl"
NOTES = ".convert"
LOCK = "lock"
EARLIER = {"key_prefix": ""}
"""What notes of earlier versions lack: a prefix, which was always empty."""
PREFIX = "shard"


@dataclass(frozen=True)
class Rejected:
    """A row that is left out of the shards; `row` counts from 0, `kind` is the broken rule."""

    row: int
    id: str
    kind: FaultKind
    detail: str


@dataclass(frozen=True)
class ConvertReport:
    """Numbers of input rows, samples, shard files and samples with pictures; the rows left out.

    `unanswered` are the rows, from 0, that are stored with pictures and without any answer.
    `earlier` is the number of shards that an earlier start finished and this one did not read.
    """

    rows: int
    samples: int
    shards: int
    rejected: list[Rejected]
    pictured: int
    unanswered: tuple[int, ...] = ()
    earlier: int = field(default=0, compare=False)

    def remarks(self) -> str:
        """Return the lines that commands print: how many samples train, and what was not read."""
        text_only = self.samples - self.pictured
        said = f"{self.pictured} of {self.samples} samples have pictures"
        if text_only:
            said += f"; {text_only} are text only and train nothing"
        if self.unanswered:
            said += (
                f"\n{len(self.unanswered)} samples have pictures but no answer, the first is row "
                f"{self.unanswered[0]}: evaluation can ask them, but training counts each against "
                "data.quarantine_budget; for training, leave these rows out and convert into an "
                "empty folder"
            )
        if self.earlier:
            said += (
                f"\n{self.earlier} shards were finished earlier and were not read again; if "
                "pictures were changed or added, convert into an empty folder"
            )
        return said


@dataclass(frozen=True)
class _Job:
    """The rows of one shard, and how to convert them."""

    number: int
    first_row: int
    rows: list[Any]
    image_folders: tuple[str, ...]
    output: Path
    limits: Limits
    key_prefix: str


class Source(NamedTuple):
    """Rows to convert.

    Attributes:
        rows: rows in the form of `convert_llava`.
        sha256: by which an interrupted conversion knows them again.
        store_pictures: writes pictures that came with them into the image folder, once the output
            folder is claimed; None if they lie there.
    """

    rows: list[Any]
    sha256: str
    store_pictures: Callable[[], None] | None = None


class _Part(NamedTuple):
    """What became of the rows of one shard; the fields are those of `ConvertReport`."""

    rejected: list[Rejected]
    pictured: int
    unanswered: list[int]
    earlier: bool


def convert_llava(
    source: str | Path, image_folders: Sequence[str | Path], output: str | Path, **more: Any
) -> ConvertReport:
    """Convert a LLaVA-style file.

    Args:
        source: JSON list or JSON lines of rows with `id`, `conversations` and `image` (a path, a
            list of paths, or absent for text only), or in a form that `row_keys` reads; other
            fields are kept.
        image_folders: folders of the images; the first that holds a path wins.
        output: folder for the shards; an interrupted conversion in it is completed.
        more: further arguments of `convert_rows`.

    Raises:
        ConfigError: the input cannot be read, or under the conditions of `convert_rows`.
    """
    return convert_rows(Source(*read_json_rows(Path(source))), image_folders, output, **more)


def convert_rows(
    source: Source,
    image_folders: Sequence[str | Path],
    output: str | Path,
    *,
    samples_per_shard: int = 1000,
    workers: int = 1,
    limits: Limits | None = None,
    key_prefix: str = "",
) -> ConvertReport:
    """Convert rows in the form of `convert_llava`.

    Args:
        source: the rows.
        image_folders: folders of the images; the first that holds a path wins.
        output: folder for the shards; an interrupted conversion in it is completed.
        limits: caps on image bytes and pixels, stored in the indexes.
        key_prefix: text before the row number in every key; conversions that are trained on
            together need different prefixes.

    Raises:
        ConfigError: a folder cannot be read, a value is out of range, or the output folder belongs
            to another conversion.
    """
    if key_prefix:
        check_key("key_prefix", key_prefix)
    at_least(1, "samples_per_shard", samples_per_shard)
    at_least(1, "workers", workers)
    folders = tuple(str(Path(folder).resolve()) for folder in image_folders)
    for folder in folders:
        if source.store_pictures is None and not Path(folder).is_dir():
            raise ConfigError(f"image_folder={folder} is not a folder; check the path")
    limits = limits or Limits()
    rows = source.rows
    target = Path(output)
    plan = {
        "source_sha256": source.sha256,
        "image_folders": list(folders),
        "samples_per_shard": samples_per_shard,
        "limits": asdict(limits),
        "key_prefix": key_prefix,
    }
    size = samples_per_shard
    jobs = [
        _Job(number, first, rows[first : first + size], folders, target, limits, key_prefix)
        for number, first in enumerate(range(0, len(rows), size))
    ]
    with claimed(target, plan):
        if source.store_pictures is not None:
            source.store_pictures()
        parts = list(map_processes(_convert_shard, jobs, workers, "converting"))
        rejected = [one for part in parts for one in part.rejected]
        write_json_lines(target / REJECTED, map(asdict, rejected))
    shards = len(list(target.glob(f"{PREFIX}-*.tar")))
    pictured = sum(part.pictured for part in parts)
    unanswered = tuple(row for part in parts for row in part.unanswered)
    samples = len(rows) - len(rejected)
    earlier = sum(part.earlier for part in parts)
    return ConvertReport(len(rows), samples, shards, rejected, pictured, unanswered, earlier)


def name_of(row: Any) -> str:
    """Return the `id` of a row as text, empty if it has none."""
    name = row.get("id") if isinstance(row, dict) else None
    return "" if name is None else str(name)


def json_lines(values: Iterable[Any]) -> bytes:
    return b"".join(_dump(value) + b"\n" for value in values)


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    write_bytes(path, json_lines(values))


@contextlib.contextmanager
def claimed(target: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Reserve the output folder for this conversion, and remove files that a crash cut short.

    Raises:
        ConfigError: the folder belongs to another conversion, or another process writes it.
    """
    note = target / NOTES / "plan.json"
    if not note.exists() and any(target.glob("*.tar")):
        raise ConfigError(f"output={target} holds shards already; choose an empty folder")
    (target / NOTES).mkdir(parents=True, exist_ok=True)
    with open(target / NOTES / LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"output={target} is being written by another conversion; wait for its end, or "
                "choose an empty folder"
            ) from error
        except OSError as error:  # a file system without locks
            logger.warning(
                "%s cannot be locked (%s); convert into it only once at a time", target, error
            )
        _match_plan(target, note, plan)
        yield


def _match_plan(target: Path, note: Path, plan: dict[str, Any]) -> None:
    """Note the plan; if one is noted, compare them and remove files that a crash cut short."""
    if not note.exists():
        write_text(note, json.dumps(plan, indent=2, sort_keys=True) + "\n")
        return
    if EARLIER | json.loads(note.read_text()) != EARLIER | plan:
        raise ConfigError(
            f"output={target} holds a conversion with other settings ({note}); choose an empty "
            "folder, or delete this one"
        )
    for folder in (target, note.parent):
        for leftover in folder.glob("*.partial"):
            leftover.unlink()


def _convert_shard(job: _Job) -> _Part:
    """Write one shard unless it exists."""
    note = job.output / NOTES / f"{job.number:06d}.json"
    shard = job.output / f"{PREFIX}-{job.number:06d}.tar"
    if note.exists():
        rejected = [Rejected(**fields) for fields in json.loads(note.read_text())]
        empty = len(rejected) == len(job.rows)
        if empty or (shard.exists() and Path(sidecar(str(shard))).exists()):
            # Earlier versions stored rows that are refused now; their shards are written again.
            with contextlib.suppress(RecordError):
                return _part(job, rejected, earlier=True)
    rejected = []
    with ShardWriter(job.output, PREFIX, len(job.rows), job.number, job.limits) as writer:
        for row, fields in enumerate(job.rows, job.first_row):
            try:
                record, images = _read_row(fields, job.image_folders, job.limits)
                writer.write(f"{job.key_prefix}{row:09d}", record, images)
            except RecordError as error:
                rejected.append(Rejected(row, name_of(fields), error.kind, str(error)))
    write_bytes(note, _dump([asdict(one) for one in rejected]))
    return _part(job, rejected, earlier=False)


def _part(job: _Job, rejected: list[Rejected], earlier: bool) -> _Part:
    left_out = {one.row for one in rejected}
    pictured, unanswered = 0, []
    for number, fields in enumerate(job.rows, job.first_row):
        if number in left_out:
            continue
        row = read_row(fields)
        if row.pictures:
            pictured += 1
            if lacks_answer(_without_greeting(row.turns)):
                unanswered.append(number)
    return _Part(rejected, pictured, unanswered, earlier)


def _without_greeting(turns: list[Any]) -> list[Any]:
    """Return turns without an answer before the first question, as LLaVA's training does."""
    return turns[1:] if len(turns) > 1 and turns[0]["from"] == "gpt" else turns


def _dump(value: Any) -> bytes:
    """Return JSON in UTF-8; half of a surrogate pair, which UTF-8 cannot hold, is escaped."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")


def _read_row(
    fields: Any, folders: tuple[str, ...], limits: Limits
) -> tuple[dict[str, Any], list[bytes]]:
    """Return the record to store and the encoded images; decode each image to check it."""
    row = read_row(fields)
    record = {name: value for name, value in row.fields.items() if name != "id"}
    record["conversations"] = turns = _without_greeting(row.turns)
    if len(turns) < len(row.turns):
        record["dropped_turns"] = 1
    check_conversation(record)
    images = [_read_picture(name, folders, limits) for name in row.pictures]
    record["source_id"] = fields.get("id")
    if row.pictures:
        names = [name.partition(";base64,")[0] for name in row.pictures]
        given = fields.get("image")
        record["source_image"] = names if isinstance(given, list) or len(names) > 1 else names[0]
    return record, images


def _read_picture(name: str, folders: tuple[str, ...], limits: Limits) -> bytes:
    """Return the bytes of a picture that a row names; decode them to check them."""
    shown = f"image {name[:200]!r}"
    try:
        if name.startswith("data:"):
            data = embedded_image(name)
        elif is_web(name):
            raise RecordError(
                "unreadable", f"{shown} is a web address; download it and name the file"
            )
        else:
            data = read_capped(_find(name.removeprefix("file://"), folders), limits.member_bytes)
        read_image(data, limits)
    except OSError as error:
        raise RecordError("unreadable", f"{shown}: {error}") from error
    except ImageTooLarge as error:
        raise RecordError("too_large", f"{shown}: {error}") from error
    except ImageError as error:
        raise RecordError("undecodable", f"{shown}: {error}") from error
    return data


def _lies_inside(path: Path, folders: tuple[str, ...]) -> bool:
    """Return whether an absolute path lies in a folder, by its name or behind symbolic links."""
    try:
        places = (path, Path(os.path.realpath(path.parent)))
    except ValueError:  # a name that no file system can hold
        places = (path, path)
    return any(place.is_relative_to(folder) for place in places for folder in folders)


def _find(name: str, folders: tuple[str, ...]) -> Path:
    """Return the first existing file of that name; an absolute one must lie in a folder."""
    path = Path(name)
    if ".." in path.parts or (path.is_absolute() and not _lies_inside(path, folders)):
        raise RecordError(
            "unreadable",
            f"image {name!r} lies outside of the image folders; give the folder that holds it",
        )
    for folder in folders:
        if (found := Path(folder, name)).is_file():
            return found
    raise RecordError(
        "unreadable",
        f"image {name!r} is not in {' or '.join(folders)}; names are relative to the image folders",
    )
