"""Convert caption data to shards: JSON lines of image and caption, or WebDataset with `.txt`.

A caption becomes one round: a fixed request beside the image, and the caption as its answer.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.data.convert import REJECTED, ConvertReport, Rejected, convert_llava
from autoselect.data.decode import ImageError, ImageTooLarge, Limits, read_image
from autoselect.data.faults import RecordError
from autoselect.data.index import sidecar
from autoselect.data.parallel import map_processes
from autoselect.data.text_files import read_json_rows
from autoselect.data.writer import ShardWriter
from autoselect.files.atomic import write_text

PROMPT = "Describe the image."
CAPTIONS = ("caption", "text", "long_caption", "captions")
IMAGES = ("image", "image_path", "file_name", "path")
PICTURES = ("jpg", "jpeg", "png", "webp")


def caption_turns(caption: Any, prompt: str) -> list[dict[str, str]]:
    """Return a caption as a conversation of one round.

    Raises:
        RecordError: it is not a text, or empty.
    """
    if isinstance(caption, list) and caption:
        caption = max((c for c in caption if isinstance(c, str)), key=len, default=None)
    if not isinstance(caption, str) or not caption.strip():
        raise RecordError("wrong_json", f"caption={caption!r} is not a text; write one per image")
    return [
        {"from": "human", "value": f"<image>\n{prompt}"},
        {"from": "gpt", "value": caption.strip()},
    ]


def caption_row(row: Any, prompt: str) -> dict[str, Any]:
    """Return a row of image and caption in LLaVA's form; of several captions the longest.

    A row that is not one is returned with an empty conversation, so that it is listed as rejected.
    """
    fields = row if isinstance(row, Mapping) else {}
    caption = next((fields[name] for name in CAPTIONS if name in fields), None)
    image = next((fields[name] for name in IMAGES if name in fields), None)
    try:
        turns = caption_turns(caption, prompt)
    except RecordError:
        turns = []
    own = {"id": str(fields.get("id", "")), "conversations": turns}
    return own if image is None else {**own, "image": image}


def convert_caption_rows(
    source: Path, images: Sequence[Path], output: Path, prompt: str = PROMPT, **more: Any
) -> ConvertReport:
    """Convert a JSON list or JSON lines of image and caption.

    Args:
        source: rows with one of `CAPTIONS` and one of `IMAGES`.
        images: folders of the images.
        output: folder for the shards.
        prompt: request that the caption answers.
        more: further arguments of `convert_llava`.

    Raises:
        ConfigError: under the conditions of `convert_llava`.
    """
    rows, _ = read_json_rows(source)
    rewritten = output / ".convert" / "captions.jsonl"
    lines = (json.dumps(caption_row(row, prompt), sort_keys=True) for row in rows)
    write_text(rewritten, "\n".join(lines) + "\n")
    return convert_llava(rewritten, images, output, **more)


@dataclass(frozen=True)
class _Job:
    number: int
    source: str
    output: str
    prompt: str
    limits: Limits


def convert_caption_shards(
    sources: Sequence[Path],
    output: Path,
    prompt: str = PROMPT,
    workers: int = 1,
    limits: Limits | None = None,
) -> ConvertReport:
    """Convert WebDataset shards of `KEY.jpg` and `KEY.txt`; each becomes one shard.

    A finished shard is skipped by a restart.

    Args:
        sources: tar files.
        output: folder for the shards.
        prompt: request that the caption answers.
        workers: number of processes.
        limits: caps on image bytes and pixels, stored in the indexes.

    Raises:
        ConfigError: a file is missing or not a tar file.
    """
    for source in sources:
        if not source.is_file() or not tarfile.is_tarfile(source):
            raise ConfigError(f"source={source} is not a tar file; give WebDataset shards")
    jobs = [
        _Job(number, str(source), str(output), prompt, limits or Limits())
        for number, source in enumerate(sources)
    ]
    parts = list(map_processes(_convert_shard, jobs, workers, len(jobs), "converting", "shard"))
    rejected = [one for _, own in parts for one in own]
    lines = [json.dumps(asdict(one)) for one in rejected]
    write_text(output / REJECTED, "".join(f"{line}\n" for line in lines))
    samples = sum(count for count, _ in parts)
    return ConvertReport(samples + len(rejected), samples, len(sources), rejected, samples)


def _convert_shard(job: _Job) -> tuple[int, list[Rejected]]:
    """Write one shard; return its samples and the rows that are left out."""
    prefix = "shard"
    note = Path(job.output) / ".convert" / f"{job.number:06d}.json"
    shard = Path(job.output) / f"{prefix}-{job.number:06d}.tar"
    if note.exists() and shard.exists() and Path(sidecar(str(shard))).exists():
        known = json.loads(note.read_text())
        return known["samples"], [Rejected(**one) for one in known["rejected"]]
    rejected: list[Rejected] = []
    samples = 0
    with ShardWriter(job.output, prefix, 1 << 30, job.number, job.limits) as writer:
        for row, (name, parts) in enumerate(_samples(job.source)):
            try:
                picture = next((parts[suffix] for suffix in PICTURES if suffix in parts), None)
                if picture is None:
                    raise RecordError("unreadable", f"{name} has none of {', '.join(PICTURES)}")
                text = parts.get("txt", b"").decode(errors="replace")
                record = {"conversations": caption_turns(text, job.prompt), "source_id": name}
                read_image(picture, job.limits)
                writer.write(f"{job.number:06d}-{row:09d}", record, [picture])
                samples += 1
            except RecordError as error:
                rejected.append(Rejected(row, name, error.kind, str(error)))
            except ImageTooLarge as error:
                rejected.append(Rejected(row, name, "too_large", str(error)))
            except ImageError as error:
                rejected.append(Rejected(row, name, "undecodable", str(error)))
    known = {"samples": samples, "rejected": [asdict(one) for one in rejected]}
    write_text(note, json.dumps(known))
    return samples, rejected


def _samples(source: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield name and members by suffix of each sample; members of one sample stand together."""
    name, parts = "", dict[str, bytes]()
    with tarfile.open(source) as tar:
        for member in tar:
            folder, _, last = member.name.rpartition("/")
            stem, _, suffix = last.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if not member.isfile():
                continue
            if key != name and parts:
                yield name, parts
                parts = {}
            name = key
            file = tar.extractfile(member)
            assert file is not None
            parts[suffix.lower()] = file.read()
    if parts:
        yield name, parts
