"""Rows of other tools mean what their authors meant, or are refused by name."""

import base64
import json
import re
from pathlib import Path

import pytest

from autoselect.data.convert import ConvertReport, convert_llava
from autoselect.data.index import build_index
from autoselect.data.row_keys import read_row
from autoselect.data.shards import ShardSet
from tests.data.shard_samples import make_image, raw_shard

ASKED = [{"from": "human", "value": "<image>\nis it?"}, {"from": "gpt", "value": "yes"}]
PLAIN = [{"from": "human", "value": "is it?"}, {"from": "gpt", "value": "yes"}]
EMBEDDED = "data:image/jpeg;base64," + base64.b64encode(make_image(7)).decode()


def convert(folder: Path, *rows: object) -> tuple[ConvertReport, list]:
    """Convert rows that may name `a.jpg` and `b.jpg`."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number, name in enumerate(("a.jpg", "b.jpg")):
        (pictures / name).write_bytes(make_image(number))
    source = folder / "rows.json"
    source.write_text(json.dumps(rows))
    report = convert_llava(source, [pictures], folder / "out")
    shards = ShardSet.open(str(folder / "out")) if report.samples else []
    return report, list(shards)


PICTURED = {
    "image": {"image": "a.jpg"},
    "list": {"image": ["a.jpg"]},
    "images": {"images": ["a.jpg"]},
    "one under images": {"images": "a.jpg"},
    "image_path": {"image_path": "a.jpg"},
    "camel case": {"imagePath": "a.jpg"},
    "upper case": {"Image": "a.jpg"},
    "image_url": {"image_url": "a.jpg"},
    "file_name": {"file_name": "a.jpg"},
    "object": {"image": {"path": "a.jpg", "bytes": None}},
    "objects": {"images": [{"path": "a.jpg", "bytes": None}]},
    "object with url": {"image_url": {"url": "a.jpg", "detail": "low"}},
    "twice the same": {"image": "a.jpg", "images": ["a.jpg"]},
    "address beside it": {"image": "a.jpg", "image_url": "https://example.org/1"},
    "address before it": {"image_url": "https://example.org/1", "img": "a.jpg"},
    "empty neighbours": {"image": None, "images": [], "image_path": "a.jpg", "video": None},
    "metadata": {"image": "a.jpg", "image_id": 7, "image_size": [24, 16], "video_id": "v1"},
    "file address": {"image": "file://a.jpg"},
}


@pytest.mark.parametrize("turns", [ASKED, PLAIN], ids=["marked", "unmarked"])
@pytest.mark.parametrize("name", PICTURED)
def test_a_picture_is_found_under_the_keys_of_other_tools(name, turns, tmp_path):
    report, (sample,) = convert(tmp_path, {"id": 1, "conversations": turns} | PICTURED[name])
    assert (report.rejected, report.pictured) == ([], 1)
    assert sample.images == (make_image(0),)
    assert sample.record["source_image"] in ("a.jpg", ["a.jpg"], "file://a.jpg")
    assert not any(sample.record.get(key) for key in ("images", "image_path", "Image"))


def test_an_absolute_path_inside_of_an_image_folder_is_read(tmp_path):
    path = tmp_path / "pictures" / "a.jpg"
    report, (sample,) = convert(tmp_path, {"conversations": ASKED, "image": str(path)})
    assert report.rejected == [] and sample.images == (make_image(0),)


def test_pictures_inside_of_rows_are_stored(tmp_path):
    part = {"type": "image_url", "image_url": {"url": EMBEDDED}}
    source = {"type": "base64", "media_type": "image/jpeg", "data": EMBEDDED.partition(",")[2]}
    said = [{"role": "assistant", "content": "yes"}]
    text = {"type": "text", "text": "is it?"}
    report, samples = convert(
        tmp_path,
        {"image": EMBEDDED, "conversations": ASKED},
        {"messages": [{"role": "user", "content": [part, text]}, *said]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": source}, text]},
                *said,
            ]
        },
    )
    assert report.rejected == []
    assert [sample.images for sample in samples] == [(make_image(7),)] * 3
    assert all(len(json.dumps(sample.record)) < 400 for sample in samples)


def parts(*content: object, **row: object) -> dict:
    turns = [
        {"role": "user", "content": list(content)},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    return {"messages": turns} | row


IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "is it?"}
SAID = {
    "roles": ({"conversations": [{"role": "user", "content": "is it?"}]}, ["is it?"]),
    "user and assistant": (
        {
            "texts": [
                {"user": "a?", "assistant": "b"},
                {"user": "c?", "assistant": "d", "source": "x"},
            ]
        },
        ["a?", "b", "c?", "d"],
    ),
    "question and answer": ({"question": "is it?", "answer": "yes"}, ["is it?", "yes"]),
    "instruction": ({"instruction": "is it?", "output": "yes", "input": ""}, ["is it?", "yes"]),
    "capitals": ({"conversations": [{"from": "Human", "value": "is it?"}]}, ["is it?"]),
    "user from": ({"conversations": [{"from": "user", "value": "is it?"}]}, ["is it?"]),
    "parts": (parts(IMAGE, TEXT, images=["a.jpg"]), ["<image>is it?", "yes"]),
    "named part": (parts({"type": "image", "image": "a.jpg"}, TEXT), ["<image>is it?", "yes"]),
    "part with path": (parts({"type": "image", "path": "a.jpg"}, TEXT), ["<image>is it?", "yes"]),
    "named and repeated": (
        parts({"type": "image", "url": "a.jpg"}, TEXT, images=["a.jpg"]),
        ["<image>is it?", "yes"],
    ),
    "untyped parts": (parts({"image": "a.jpg"}, {"text": "is it?"}), ["<image>is it?", "yes"]),
    "responses": (
        parts(
            {"type": "input_text", "text": "Compare "},
            {"type": "input_image", "image_url": "a.jpg"},
            {"type": "input_text", "text": " with "},
            {"type": "input_image", "image_url": "b.jpg"},
        ),
        ["Compare <image> with <image>", "yes"],
    ),
    "nulls of a table": (
        parts({"type": "text", "text": "is it?", "image": None}, {"type": "image", "text": None})
        | {"images": ["a.jpg"]},
        ["is it?<image>", "yes"],
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_turns_of_other_tools_are_read(name, tmp_path):
    row, texts = SAID[name]
    report, (sample,) = convert(tmp_path, row)
    assert report.rejected == []
    turns = sample.record["conversations"]
    assert [turn["value"] for turn in turns] == texts
    assert [turn["from"] for turn in turns] == ["human", "gpt", "human", "gpt"][: len(turns)]
    assert len(sample.images) == texts[0].count("<image>")
    assert not {"messages", "texts", "question", "images"} & set(sample.record)


def talk(*turns: tuple[str, object], **row: object) -> dict:
    return {"messages": [{"role": r, "content": c} for r, c in turns]} | row


REFUSED = {
    "video": (dict(video="v.mp4", conversations=PLAIN), "'video' is 'v.mp4'.*take frames"),
    "videos": (dict(videos=["v.mp4"], conversations=PLAIN), "'videos' is .*take frames"),
    "video beside an image": (
        dict(video="v.mp4", image="a.jpg", conversations=ASKED),
        "'video' is 'v.mp4'",
    ),
    "audio": (dict(audio="s.wav", conversations=PLAIN), "'audio' is 's.wav'"),
    "video mark": (
        dict(conversations=[{"from": "human", "value": "<video>\nwho?"}]),
        "turn 0 holds '<video>'",
    ),
    "mark of Qwen": (
        dict(conversations=[{"from": "human", "value": "<img>a.jpg</img> who?"}]),
        "turn 0 holds '<img>a.jpg</img>'; write <image>",
    ),
    "unknown picture key": (dict(photo="a", conversations=PLAIN), "'photo' is 'a'.*under 'image'"),
    "picture id": (dict(image_id=33471, conversations=PLAIN), "'image_id' is '33471'"),
    "file under another key": (dict(pic="x/a.PNG", conversations=PLAIN), "'pic' is 'x/a.PNG'"),
    "web address": (dict(image="https://e.org/a.jpg", conversations=ASKED), "download it"),
    "empty name": (dict(image="", conversations=PLAIN), "image must be a name"),
    "missing value of a table": (dict(image=float("nan"), conversations=PLAIN), "not 'nan'"),
    "two answers to which": (
        dict(image="a.jpg", images=["a.jpg", "b.jpg"], conversations=PLAIN),
        "'image' names a.jpg and 'images' names a.jpg, b.jpg; keep one",
    ),
    "part against key": (
        parts({"type": "image", "image": "a.jpg"}, TEXT, images=["b.jpg"]),
        "'messages' names a.jpg and 'images' names b.jpg",
    ),
    "half named": (
        parts(IMAGE, {"type": "image", "image": "a.jpg"}, TEXT),
        "some pictures in its turns are named and some are not",
    ),
    "more marks": (parts(IMAGE, IMAGE, TEXT, images=["a.jpg"]), "2 <image> placeholders for 1"),
    "broken data": (dict(image="data:image/png;base64,?", conversations=ASKED), "data URL"),
    "system": (talk(("system", "Be kind."), ("user", "a?")), "turn 0 is a system turn.*front of"),
    "system key": (dict(system="Be kind.", conversations=PLAIN), "'system' is not trained with"),
    "history": (dict(history=[["a", "b"]], question="c?", answer="d"), "'history' is not trained"),
    "tool": (talk(("user", "a?"), ("tool", "5")), "turn 1: 'from' must be 'gpt', not 'tool'"),
    "tool call": (
        talk(("user", "a?"), ("assistant", [{"type": "tool_use", "id": 1}])),
        "turn 1 holds a part 'tool_use'",
    ),
    "video part": (talk(("user", [{"type": "video", "video": "v.mp4"}])), "a part 'video'.*frames"),
    "picture as answer": (
        talk(("user", "draw"), ("assistant", [{"type": "image", "image": "a.jpg"}])),
        "turn 1 answers with a picture",
    ),
    "two questions": (talk(("user", "a?"), ("user", "b?")), "turn 1: 'from' must be 'gpt'"),
    "turns as text": (dict(conversations="[]"), "conversations must be a list of turns, not str"),
    "turns of text": (dict(conversations=["a?", "b"]), "turn 0 must be an object, not 'a\\?'"),
    "no turns": (dict(id=1, text="x"), "at least one turn; the row has the keys id, text"),
    "caption": (
        dict(image="a.jpg", caption="red"),
        "the row has the keys image, caption; captions are for `autoselect shards convert-captions",
    ),
    "unknown turns": (
        dict(dialog=[{"q": "a?", "a": "b"}]),
        "turn 0 has the keys q, a; name who speaks under 'from' and the text under 'value'",
    ),
    "nothing": ({}, "the row has the keys \\(none\\)"),
    "a list": ([], "expected an object, found list"),
    "number as text": (talk(("user", 5)), "turn 0: 'value' must be text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name_with_the_way_out(name, tmp_path):
    row, cause = REFUSED[name]
    report, samples = convert(tmp_path, row, {"conversations": PLAIN})
    assert [len(sample.images) for sample in samples] == [0]
    (rejected,) = report.rejected
    assert re.search(cause, rejected.detail), rejected.detail


def test_text_rows_stay_text_rows(tmp_path):
    """Words about pictures are not pictures."""
    turns = [
        {
            "from": "human",
            "value": "How do I write a <video> tag, or <img src='a.png'>, in a.html?",
        },
        {"from": "gpt", "value": "Like a.jpg"},
    ]
    fields = {"id": "a.png", "model": "", "images": [], "video": "", "has_image": False}
    report, (sample,) = convert(tmp_path, {"conversations": turns} | fields)
    assert (report.rejected, report.pictured, sample.images) == ([], 0, ())
    assert sample.record["conversations"] == turns


def test_a_row_in_llavas_form_is_kept_as_it_is():
    turns = [turn | {"note": 3} for turn in ASKED]
    row = read_row({"id": 7, "image": ["a", "b"], "conversations": turns, "tasks": ["x"]})
    assert (row.turns, row.pictures) == (turns, ["a", "b"])
    assert row.fields == {"id": 7, "tasks": ["x"]}


def stored(folder: Path, record: dict, *members: str):
    """Index a shard of another tool with one sample, and return its faults or the sample."""
    shard = raw_shard(
        folder / "x.tar",
        [
            *((f"x.{name}", make_image(3)) for name in members),
            ("x.json", json.dumps(record).encode()),
        ],
    )
    faults = build_index(str(shard)).header.faults
    return [(fault.kind, fault.detail) for fault in faults] or ShardSet.open(str(shard))[0]


@pytest.mark.parametrize(
    ("record", "members", "cause"),
    [
        ({"video": "v.mp4"}, (), "'video' is 'v.mp4'"),
        ({"images": ["a.jpg"]}, (), "names 1 images, 0 are stored"),
        ({"images": ["a.jpg", "b.jpg"]}, ("jpg",), "names 2 images, 1 are stored"),
        ({"image_id": 5}, (), "'image_id' is '5'"),
        ({}, ("avif",), "x.avif is not read; store"),
        ({}, ("mp4",), "x.mp4 is not read; store"),
    ],
)
def test_samples_of_shards_are_not_text_without_a_word(tmp_path, record, members, cause):
    ((_, detail),) = stored(tmp_path, {"conversations": PLAIN} | record, *members)
    assert cause in detail


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": ASKED},
        {"conversations": ASKED, "image_url": "https://example.org/1"},
        {"conversations": ASKED, "images": ["a.jpg"], "video_id": "v"},
        parts(IMAGE, TEXT),
        {"question": "is it?", "answer": "yes", "image": "a.jpg"},
    ],
)
def test_samples_of_shards_of_other_tools_are_read(tmp_path, record):
    sample = stored(tmp_path, record, "jpg")
    assert sample.images == (make_image(3),)
    assert [turn["from"] for turn in sample.record["conversations"]] == ["human", "gpt"]


def test_a_conversion_of_an_earlier_version_is_made_again_if_it_stored_pictures_as_text(tmp_path):
    rows = ({"conversations": PLAIN}, {"conversations": PLAIN, "video": "v.mp4"})
    convert(tmp_path, *rows)
    out = tmp_path / "out"
    note = out / ".convert" / "000000.json"
    note.write_text("[]")
    (out / "rejected.jsonl").write_text("")
    report, samples = convert(tmp_path, *rows)
    assert (report.samples, len(samples)) == (1, 1) and note.read_text() != "[]"
