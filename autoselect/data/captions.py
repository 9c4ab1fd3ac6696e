"""Convert caption data to shards: JSON lines of image and caption, or WebDataset with `.txt`.

A caption becomes one round: a fixed request beside the image, and the caption as its answer.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autoselect.config import ConfigError
from autoselect.data.convert import (
    NOTES,
    PREFIX,
    REJECTED,
    ConvertReport,
    Rejected,
    Source,
    claimed,
    convert_rows,
    name_of,
    write_json_lines,
)
from autoselect.data.decode import ImageError, ImageTooLarge, Limits, read_image
from autoselect.data.faults import RecordError
from autoselect.data.index import sidecar
from autoselect.data.parallel import map_processes
from autoselect.data.tar_scan import Member, TarScan, split_name
from autoselect.data.text_files import read_json_rows
from autoselect.data.turns import TURN_KEYS, plain_key
from autoselect.data.writer import ShardWriter, check_key
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


def _caption_row(row: Any, prompt: str) -> tuple[dict[str, Any], str]:
    """Return a row of image and caption in LLaVA's form, and what is wrong with it.

    Of several captions the longest is taken. A wrong row has an empty conversation, so that it is
    listed as rejected.
    """
    fields = row if isinstance(row, Mapping) else {}
    image = next((fields[name] for name in IMAGES if _filled(fields.get(name))), None)
    turns, fault = [], ""
    try:
        turns = caption_turns(_caption_of(row), prompt)
    except RecordError as error:
        fault = str(error)
    own = {"id": name_of(row), "conversations": turns}
    return own if image is None else {**own, "image": image}, fault


def _caption_of(row: Any) -> Any:
    """Return the first caption of a row that is not empty; raise RecordError if it has none."""
    if not isinstance(row, Mapping):
        raise RecordError("wrong_json", f"expected an object, found {type(row).__name__}")
    known = [row[name] for name in CAPTIONS if name in row]
    if known:
        return next(filter(_filled, known), known[0])
    talks = any(plain_key(key) in TURN_KEYS for key in row)
    hint = "; conversations are for `autoselect shards convert-llava`" if talks else ""
    raise RecordError(
        "wrong_json",
        f"every row needs a caption as {', '.join(CAPTIONS[:-1])} or {CAPTIONS[-1]}; "
        f"the row has the keys {', '.join(map(str, row)) or '(none)'}{hint}",
    )


def _filled(value: Any) -> bool:
    """Return False for what an empty column becomes: null, an empty list, or white space."""
    return bool(value.strip() if isinstance(value, str) else value)


def convert_caption_rows(
    source: Path, images: Sequence[Path], output: Path, prompt: str = PROMPT, **more: Any
) -> ConvertReport:
    """Convert a JSON list or JSON lines of image and caption.

    Args:
        source: rows with one of `CAPTIONS` and one of `IMAGES`.
        images: folders of the images.
        output: folder for the shards.
        prompt: request that the caption answers.
        more: further arguments of `convert_rows`.

    Raises:
        ConfigError: the input cannot be read, or under the conditions of `convert_rows`.
    """
    read = [_caption_row(row, prompt) for row in read_json_rows(source)[0]]
    rows, faults = [own for own, _ in read], [fault for _, fault in read]
    text = "".join(f"{json.dumps(own, sort_keys=True)}\n" for own in rows)
    found = Source(rows, hashlib.sha256(text.encode()).hexdigest())
    report = convert_rows(found, images, output, **more)
    rejected = [replace(one, detail=faults[one.row] or one.detail) for one in report.rejected]
    write_json_lines(output / REJECTED, map(asdict, rejected))
    return replace(report, rejected=rejected)


@dataclass(frozen=True)
class _Job:
    number: int
    source: str
    output: Path
    prompt: str
    limits: Limits
    key_prefix: str


def convert_caption_shards(
    sources: Sequence[Path],
    output: Path,
    prompt: str = PROMPT,
    workers: int = 1,
    limits: Limits | None = None,
    key_prefix: str = "",
) -> ConvertReport:
    """Convert WebDataset shards of `KEY.jpg` and `KEY.txt`; each becomes one shard.

    A finished shard is skipped by a restart. Damaged headers are listed among the rejected rows.

    Args:
        sources: tar files.
        output: folder for the shards; an interrupted conversion in it is completed.
        prompt: request that the caption answers.
        workers: number of processes.
        limits: caps on image bytes and pixels, stored in the indexes.
        key_prefix: text before the number in every key, see `convert_llava`.

    Raises:
        ConfigError: a file is missing, cut short, not a tar file or named twice, or the output
            folder belongs to another conversion.
    """
    if key_prefix:
        check_key("key_prefix", key_prefix)
    for source in sources:
        if not source.is_file() or not tarfile.is_tarfile(source):
            raise ConfigError(f"source={source} is not a tar file; give WebDataset shards")
    limits = limits or Limits()
    known = [[str(source.resolve()), source.stat().st_size] for source in sources]
    if twice := next((source for source in known if known.count(source) > 1), None):
        raise ConfigError(f"source={twice[0]} comes twice; name every tar file once")
    plan = {"sources": known, "prompt": prompt, "limits": asdict(limits)}
    jobs = [
        _Job(number, str(source), output, prompt, limits, key_prefix)
        for number, source in enumerate(sources)
    ]
    with claimed(output, {**plan, "key_prefix": key_prefix}):
        parts = list(map_processes(_convert_shard, jobs, workers, "converting"))
        rejected = [one for _, own, _ in parts for one in own]
        write_json_lines(output / REJECTED, map(asdict, rejected))
    samples, shards = sum(count for count, _, _ in parts), len(list(output.glob(f"{PREFIX}-*.tar")))
    earlier = sum(skipped for _, _, skipped in parts)
    rows = samples + len(rejected)
    return ConvertReport(rows, samples, shards, rejected, samples, earlier=earlier)


def _convert_shard(job: _Job) -> tuple[int, list[Rejected], bool]:
    """Write one shard unless it exists; return its samples, the rows left out, if it existed."""
    note = job.output / NOTES / f"{job.number:06d}.json"
    shard = job.output / f"{PREFIX}-{job.number:06d}.tar"
    if note.exists() and shard.exists() and Path(sidecar(str(shard))).exists():
        known = json.loads(note.read_text())
        return known["samples"], [Rejected(**one) for one in known["rejected"]], True
    rejected: list[Rejected] = []
    samples = row = 0
    with (
        ShardWriter(job.output, PREFIX, 1 << 30, job.number, job.limits) as writer,
        open(job.source, "rb") as stream,
    ):
        scan = TarScan(stream, job.source, ("txt", *PICTURES), job.limits.member_bytes)
        for row, (name, members) in enumerate(_samples(scan)):
            try:
                picture, text = _picture_and_text(name, members, job.limits)
                record = {"conversations": caption_turns(text, job.prompt), "source_id": name}
                read_image(picture, job.limits)
                writer.write(f"{job.key_prefix}{job.number:06d}-{row:09d}", record, [picture])
                samples += 1
            except RecordError as error:
                rejected.append(Rejected(row, name, error.kind, str(error)))
            except ImageTooLarge as error:
                rejected.append(Rejected(row, name, "too_large", str(error)))
            except ImageError as error:
                rejected.append(Rejected(row, name, "undecodable", str(error)))
        if scan.truncated:
            raise ConfigError(
                f"source={job.source} is cut short ({scan.faults[-1].detail}), so an unknown "
                "number of samples is missing; copy or download it again, or leave it out"
            )
    for number, fault in enumerate(scan.faults, row + 1):
        where = f"{job.source} at byte {fault.offset}"
        rejected.append(Rejected(number, fault.key, fault.kind, f"{where}: {fault.detail}"))
    known = {"samples": samples, "rejected": [asdict(one) for one in rejected]}
    write_text(note, json.dumps(known))
    return samples, rejected, False


def _samples(scan: TarScan) -> Iterator[tuple[str, list[tuple[str, Member]]]]:
    """Yield name and members, with their suffixes, of each sample; its members stand together."""
    name, members = "", list[tuple[str, Member]]()
    for member in scan:
        split = split_name(member.name)
        if split is None:
            continue
        if split[0] != name and members:
            yield name, members
            members = []
        name = split[0]
        members.append((split[1], member))
    if members and not scan.truncated:
        yield name, members


def _picture_and_text(
    name: str, members: list[tuple[str, Member]], limits: Limits
) -> tuple[bytes, str]:
    """Return the encoded picture and the caption of a sample.

    Raises:
        RecordError: a sample has no picture or several, has a member twice, or has one above the
            cap; or its caption is not in UTF-8.
    """
    parts = dict(members)
    if len(parts) < len(members):
        raise RecordError("duplicate_key", f"a member of {name} comes twice")
    pictures = [one for one in PICTURES if one in parts]
    if not pictures:
        raise RecordError("unreadable", f"{name} has none of {', '.join(PICTURES)}")
    if len(pictures) > 1:
        raise RecordError("unsupported", f"{name} has {' and '.join(pictures)}; keep one picture")
    (suffix,) = pictures
    for used in (suffix, "txt"):
        if used in parts and parts[used].link:
            raise RecordError("unsupported", f"{name}.{used} is a link; store the file itself")
        if used in parts and parts[used].size > limits.member_bytes:
            raise RecordError(
                "too_large",
                f"{name}.{used} has {parts[used].size} bytes, the cap is {limits.member_bytes}",
            )
    text = parts["txt"].payload if "txt" in parts else b""
    try:
        return parts[suffix].payload, text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError("wrong_json", f"{name}.txt is not in UTF-8: {error}") from error
