"""Whatever rows, files, shards and pictures hold, the outcome is a value or a named error."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from autoselect.config import ConfigError
from autoselect.data.benchmarks.table import BENCHMARKS
from autoselect.data.convert import convert_llava
from autoselect.data.decode import ImageError, read_image
from autoselect.data.faults import BadSample, RecordError
from autoselect.data.record import check_conversation, parse_record
from autoselect.data.row_keys import read_row
from autoselect.data.shards import ShardSet
from autoselect.data.text_files import read_json_rows
from tests.data.official_files import MAKERS
from tests.data.shard_samples import make_image, make_record, raw_shard


def bounded(examples: int):
    """Return settings that make the same examples on every machine, without a time limit."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


WORDS = st.sampled_from(
    "image images image_path image_url imagePath img video videos audio photo pic id system input "
    "conversations messages turns texts question answer user assistant human gpt from value role "
    "content type text url path data source base64 tool name".split()
)
STRINGS = WORDS | st.sampled_from(
    [
        "a.jpg",
        "../a.jpg",
        "/a.jpg",
        "a\0b",
        "v.mp4",
        "https://e.org/a.jpg",
        "data:image/png;base64,eA",
    ]
    + ["data:,", "<image>", "<image>\nwhat?", "<video>", "", " ", "\ud83d", "\u2028", "image_url"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | STRINGS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "image", "image_url", "video", "tool_use"]) | LEAVES,
        "text": VALUES,
        "image": VALUES,
        "image_url": VALUES,
    },
)
TURNS = st.fixed_dictionaries(
    {},
    optional={
        "from": st.sampled_from(["human", "gpt", "system"]) | VALUES,
        "role": st.sampled_from(["user", "assistant", "tool"]) | VALUES,
        "value": STRINGS | st.lists(PARTS | VALUES, max_size=3) | VALUES,
        "content": STRINGS | st.lists(PARTS | VALUES, max_size=3) | VALUES,
    },
)
ROWS = VALUES | st.builds(
    lambda key, turns, rest: rest | {key: turns},
    st.sampled_from(["conversations", "messages", "texts"]),
    st.lists(TURNS | VALUES, max_size=4),
    st.dictionaries(WORDS, VALUES, max_size=3),
)


@bounded(400)
@given(ROWS)
def test_a_row_is_read_or_refused_by_name(row):
    before = json.dumps(row)
    try:
        read = read_row(row)
        check_conversation({"conversations": read.turns})
    except RecordError as error:
        assert str(error)
    else:
        assert all(isinstance(name, str) and name for name in read.pictures)
        assert [turn["from"] for turn in read.turns] == ["human", "gpt"] * (
            len(read.turns) // 2
        ) + ["human"] * (len(read.turns) % 2)
    assert json.dumps(row) == before


@bounded(15)
@given(st.lists(ROWS, min_size=1, max_size=12))
def test_a_conversion_stores_or_lists_every_row(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.jpg").write_bytes(make_image(1))
    (folder / "rows.json").write_text(json.dumps([*rows, make_record(0, 0)]))
    report = convert_llava(folder / "rows.json", [folder], folder / "out")
    stored = list(ShardSet.open(str(folder / "out")).usable())
    assert len(stored) + len(report.rejected) == len(rows) + 1
    assert all(one.detail for one in report.rejected)
    assert report.pictured == sum(bool(sample.images) for sample in stored)


LINE = json.dumps(make_record(0, 0)).encode()
FILES = [
    LINE,
    b"[" + LINE + b",\n" + LINE + b"]",
    LINE + b"\n" + LINE,
    LINE.decode().encode("utf-16"),
]
EDITS = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.sampled_from([b"", b",", b"]", b"}", b"[", b'"', b"\\", b"\0", b"\xff", b"\n", b"NaN"])
        | st.binary(max_size=3),
        st.integers(0, 3),
    ),
    max_size=3,
)


def edited(data: bytes, edits) -> bytes:
    """Replace some bytes by others."""
    for place, new, old in edits:
        data = data[:place] + new + data[place + old :]
    return data


@bounded(300)
@given(st.binary(max_size=60) | st.builds(edited, st.sampled_from(FILES), EDITS))
def test_a_file_of_rows_is_read_or_refused_by_name(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "rows"
    path.write_bytes(data)
    try:
        rows, digest = read_json_rows(path)
    except ConfigError as error:
        assert str(path) in str(error)
    else:
        assert rows and len(digest) == 64


RECORDS = st.builds(
    lambda record, image: json.dumps(record | ({"image": image} if image is not ... else {})),
    st.just(make_record(0)) | ROWS.filter(lambda row: isinstance(row, dict)),
    VALUES | st.just(...),
)
MEMBERS = st.tuples(
    st.sampled_from(["a", "a", "b", "c/d", "__x", ".h"]),
    st.sampled_from(["jpg", "0.png", "1.jpg", "json", "JSON", "avif", "mp4", "txt", "json.x"]),
    st.sampled_from([make_image(0), b"", b"{}", b"[" * 9999]) | RECORDS.map(str.encode),
)


@bounded(100)
@given(st.lists(MEMBERS, min_size=1, max_size=6), EDITS)
def test_a_shard_gives_samples_or_faults(tmp_path_factory, members, edits):
    folder = tmp_path_factory.mktemp("shard")
    shard = raw_shard(
        folder / "x.tar", [(f"{key}.{suffix}", data) for key, suffix, data in members]
    )
    try:
        shards = ShardSet.open(str(shard))
    except ConfigError:
        return
    assert len(shards) and all(fault.detail for fault in shards.faults)
    shard.write_bytes(edited(shard.read_bytes(), [(512 + place, b"", 0) for place, _, _ in edits]))
    for number in range(len(shards)):
        try:
            sample = shards[number]
            assert len(sample.pictures) == len(sample.images)
        except BadSample as error:
            assert error.fault.detail


@bounded(200)
@given(
    st.binary(max_size=80) | RECORDS.map(lambda text: text.encode()[:-3]) | RECORDS.map(str.encode)
)
def test_a_record_is_parsed_or_refused_by_name(data):
    try:
        assert parse_record(data)["conversations"]
    except RecordError as error:
        assert str(error)


def seeds() -> list[bytes]:
    """Small pictures of every format, with metadata, transparency and several frames."""
    image = Image.linear_gradient("L").resize((9, 7))
    made = []
    exif = Image.Exif()
    exif[0x112] = 6
    for mode, kind, options in (
        *(("RGB", kind, {"exif": exif}) for kind in ("JPEG", "PNG", "WEBP", "TIFF")),
        ("CMYK", "JPEG", {"progressive": True}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGB", "TIFF", {"compression": "tiff_lzw", "save_all": True, "append_images": [image]}),
        ("F", "TIFF", {}),
        ("P", "GIF", {"save_all": True, "append_images": [image.convert("P")], "transparency": 3}),
        ("P", "PNG", {"transparency": b"\0\x80"}),
        ("RGB", "BMP", {}),
    ):
        stream = io.BytesIO()
        image.convert("RGB" if mode == "RGBA" else "L").convert(mode).save(stream, kind, **options)
        made.append(stream.getvalue())
    return made


SPOILT = st.lists(
    st.tuples(st.integers(0, 900), st.binary(max_size=4), st.integers(0, 4)), max_size=4
)


@bounded(400)
@given(st.binary(max_size=40) | st.builds(edited, st.sampled_from(seeds()), SPOILT))
def test_a_picture_is_read_or_refused_by_name(data):
    try:
        picture = read_image(data)
    except ImageError as error:
        assert str(error)
    else:
        assert picture.mode == "RGB" and min(picture.size) > 0 and not picture.info


OFFICIAL = {name: make for name, make in MAKERS.items() if name != "mme"}


def replaced(value, path: list[int], new):
    """Return a JSON value in which the part at `path` is another one."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    inner = replaced(value[key], path[1:], new)
    if isinstance(value, dict):
        return value | {key: inner}
    return value[:key] + [inner] + value[key + 1 :]


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> dict[str, dict[str, Path]]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in OFFICIAL.items()}


@bounded(300)
@given(
    st.sampled_from(sorted(OFFICIAL)),
    st.integers(0, 3),
    st.lists(st.integers(0, 5), max_size=4),
    VALUES | st.binary(max_size=20),
)
def test_official_files_are_read_or_refused_by_name(official, name, which, path, new):
    files = official[name]
    texts = [p for own in files.values() for p in ([own] if own.is_file() else own.glob("*.json"))]
    target = sorted(texts)[which % len(texts)]
    before = target.read_bytes()
    try:
        if isinstance(new, bytes):
            place = 7 * sum(path)
            target.write_bytes(before[:place] + new + before[place + len(new) :])
        elif target.suffix == ".json" and name != "pope":
            target.write_text(json.dumps(replaced(json.loads(before), path, new)))
        else:
            lines = before.decode().splitlines()
            lines[sum(path) % len(lines)] = str(new).encode(errors="replace").decode()
            target.write_text("\n".join(lines))
        stored = {"images": target.parent / "stored"}
        rows = BENCHMARKS[name].rows(files if "images" in files else files | stored)
    except ConfigError as error:
        assert str(error)
    else:
        assert all(row["conversations"] and row["image"] for row in rows)
    finally:
        target.write_bytes(before)
