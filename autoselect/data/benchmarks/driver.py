"""Convert a benchmark: its official files become LLaVA-style rows, and `convert` makes the shards.

So the conversion is parallel, restartable and deterministic, and rows whose image is missing or
broken are listed in `rejected.jsonl`. The rows stay in `.convert/rows.jsonl`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from autoselect.config import ConfigError
from autoselect.data.benchmarks.table import Benchmark
from autoselect.data.convert import NOTES, ConvertReport, Source, convert_rows, json_lines
from autoselect.data.decode import Limits
from autoselect.files.atomic import write_bytes


@dataclass(frozen=True)
class PublicReport:
    """The report of the converter, and the numbers of all questions and of those rejected."""

    conversion: ConvertReport
    questions: int
    lost_questions: int


def convert_public(
    benchmark: Benchmark,
    files: Mapping[str, Path],
    output: Path,
    *,
    samples_per_shard: int = 1000,
    workers: int = 1,
    limits: Limits | None = None,
) -> PublicReport:
    """Convert one benchmark as `convert_rows` does.

    Args:
        files: path of each of `benchmark.files`; optional ones may be absent.
        output: folder for the shards; an interrupted conversion in it is completed.
        samples_per_shard: images per shard (questions, if multiple choice).

    Raises:
        ConfigError: a file cannot be read or is not the official one, or `output` belongs to
            another conversion.
    """
    work = output / NOTES
    given = dict(files)
    store_pictures = benchmark.store_pictures
    if store_pictures is not None:
        given["images"] = work / "images"
    elif not given["images"].is_dir():
        raise ConfigError(f"images={given['images']} is not a folder; check the path")
    rows = benchmark.rows(given)
    if not rows:
        raise ConfigError(f"the files of {benchmark.name} hold no question about an image")
    text = json_lines(rows)
    store = None if store_pictures is None else partial(store_pictures, given)
    conversion = convert_rows(
        Source(rows, hashlib.sha256(text).hexdigest(), store),
        [given["images"]],
        output,
        samples_per_shard=samples_per_shard,
        workers=workers,
        limits=limits,
    )
    write_bytes(work / "rows.jsonl", text)  # now that the folder is known to be this conversion's
    counts = [len(row["tasks"]) for row in rows]
    lost = sum(counts[one.row] for one in conversion.rejected)
    return PublicReport(conversion, sum(counts), lost)
