"""LLaVA-style input becomes the same shards however the work is split or interrupted."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from autoselect.config import ConfigError
from autoselect.data.convert import REJECTED, convert_llava
from autoselect.data.decode import Limits
from autoselect.data.shards import ShardSet
from tests.data.shard_samples import make_image, make_record


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """60 good rows: one image, two images, or text only; ids as LLaVA has them."""
    images = tmp_path / "images"
    (images / "coco").mkdir(parents=True)
    rows = []
    for number in range(60):
        row = {"id": f"id/{number % 50}.x"} | make_record(number, number % 3)
        names = [f"coco/{number}-{part}.jpg" for part in range(number % 3)]
        for part, name in enumerate(names):
            (images / name).write_bytes(make_image(number + part))
        if names:
            row["image"] = names[0] if len(names) == 1 else names
        rows.append(row | {"tasks": ["count"]})
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_row_becomes_a_sample(source: Path, tmp_path: Path) -> None:
    rows = json.loads(source.read_text())
    report = convert_llava(source, [tmp_path / "images"], tmp_path / "out", samples_per_shard=25)
    assert (report.rows, report.samples, report.shards, report.rejected) == (60, 60, 3, [])
    assert (tmp_path / "out" / REJECTED).read_text() == ""
    shards = ShardSet.open(str(tmp_path / "out"))
    shards.check_keys()
    for number, row in enumerate(rows):
        sample = shards[number]
        assert sample.images == tuple(make_image(number + part) for part in range(number % 3))
        assert sample.record["conversations"] == row["conversations"]
        assert sample.record["tasks"] == ["count"]
        assert sample.record["source_id"] == row["id"]
        assert sample.record.get("source_image") == row.get("image")


def test_json_lines_give_the_same_samples(source: Path, tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in json.loads(source.read_text())) + "\n")
    outputs = [tmp_path / "a", tmp_path / "b"]
    for path, output in zip((source, lines), outputs, strict=True):
        convert_llava(path, [tmp_path / "images"], output)
    sets = [ShardSet.open(str(output)) for output in outputs]
    assert sets[0].digest == sets[1].digest


def test_workers_do_not_change_the_bytes(source: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        convert_llava(
            source,
            [tmp_path / "images"],
            tmp_path / f"out{workers}",
            samples_per_shard=7,
            workers=workers,
        )
    assert content(tmp_path / "out1") == content(tmp_path / "out2")


def test_a_killed_conversion_is_completed_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    images, whole, killed = tmp_path / "images", tmp_path / "whole", tmp_path / "killed"
    convert_llava(source, [images], whole, samples_per_shard=4)
    # Every read of an image takes 20 ms longer, so that the kill comes in the middle.
    script = (
        "import sys, time; from autoselect.data import convert; decode = convert.read_image;"
        "convert.read_image = lambda *a: (time.sleep(0.02), decode(*a))[1];"
        "convert.convert_llava(sys.argv[1], [sys.argv[2]], sys.argv[3], samples_per_shard=4)"
    )
    command = [sys.executable, "-c", script, str(source), str(images), str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(killed.glob("*.tar"))) < 5 and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the conversion ended before it was killed"
    assert len(list(killed.glob("*.tar"))) < 15
    convert_llava(source, [images], killed, samples_per_shard=4)
    assert content(killed) == content(whole)


def test_finished_shards_are_not_written_again(source: Path, tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    convert_llava(source, [images], output, samples_per_shard=20)
    (output / "shard-000001.tar").unlink()
    before = {path: path.stat().st_ino for path in output.glob("*.tar")}
    convert_llava(source, [images], output, samples_per_shard=20)
    after = {path: path.stat().st_ino for path in output.glob("*.tar")}
    assert len(before) == 2 and len(after) == 3
    assert all(after[path] == before[path] for path in before)


def test_unusable_rows_are_listed_and_counted(source: Path, tmp_path: Path) -> None:
    rows, images = json.loads(source.read_text()), tmp_path / "images"
    (images / "coco" / "4-0.jpg").unlink()
    (images / "coco" / "8-1.jpg").write_bytes(make_image(0)[:300])
    (images / "coco" / "10-0.jpg").write_bytes(b"<html>not found</html>")
    (images / "coco" / "11-0.jpg").write_bytes(make_image(0, size=(200, 200)))
    rows[12] = "no row"
    rows[15]["conversations"] = []
    rows[16]["image"] = "../rows.json"
    rows[18]["conversations"][0]["value"] = "<image> without an image"
    source.write_text(json.dumps(rows))
    report = convert_llava(
        source, [images], tmp_path / "out", samples_per_shard=9, limits=Limits(pixels=10_000)
    )
    assert [(one.row, one.kind) for one in report.rejected] == [
        (4, "unreadable"),
        (8, "undecodable"),
        (10, "undecodable"),
        (11, "too_large"),
        (12, "wrong_json"),
        (15, "wrong_json"),
        (16, "unreadable"),
        (18, "wrong_json"),
    ]
    assert "'coco/4-0.jpg' is not in " in report.rejected[0].detail
    lines = (tmp_path / "out" / REJECTED).read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [4, 8, 10, 11, 12, 15, 16, 18]
    shards = ShardSet.open(str(tmp_path / "out"))
    assert report.samples == len(shards) == 52
    again = convert_llava(
        source, [images], tmp_path / "out", samples_per_shard=9, limits=Limits(pixels=10_000)
    )
    assert again == report


def test_a_row_that_cannot_be_written_does_not_end_the_conversion(tmp_path: Path) -> None:
    row = make_record(1)
    (tmp_path / "1.jpg").write_bytes(make_image(1))
    said = {"conversations": [*row["conversations"][:1], {"from": "gpt", "value": "so \ud83d"}]}
    rows = [
        row | {"image": "1.jpg"},
        row | {"image": "1.jpg", "id": "\ud83d", **said},
        row | {"image": "1.jpg", "note": "\ude00", "id": "café"},
        row | {"image": "\ud83d.jpg"},
        row | {"image": f"{'long' * 64}.jpg"},
        row | {"image": "1.jpg"},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for _ in range(2):
        report = convert_llava(tmp_path / "rows.json", [tmp_path], tmp_path / "out")
        assert [(one.row, one.id, one.kind) for one in report.rejected] == [
            (1, "\ud83d", "wrong_json"),
            (2, "café", "wrong_json"),
            (3, "", "unreadable"),
            (4, "", "unreadable"),
        ]
        lines = (tmp_path / "out" / REJECTED).read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == ["\ud83d", "café", "", ""]
    assert len(ShardSet.open(str(tmp_path / "out"))) == 2


def test_a_photograph_with_a_second_picture_is_a_jpeg(tmp_path: Path) -> None:
    """Cameras and phones append a gain map or another view."""
    first, second = (Image.new("RGB", (24, 16), (50 * n, 9, 9)) for n in (1, 2))
    first.save(tmp_path / "1.jpg", "MPO", save_all=True, append_images=[second])
    (tmp_path / "rows.json").write_text(json.dumps([make_record(0) | {"image": "1.jpg"}]))
    assert convert_llava(tmp_path / "rows.json", [tmp_path], tmp_path / "out").rejected == []
    sample = ShardSet.open(str(tmp_path / "out"))[0]
    assert sample.images == ((tmp_path / "1.jpg").read_bytes(),)
    assert sample.record["image"] == "000000000.jpg" and sample.pictures[0].size == (24, 16)


def test_a_shard_of_unusable_rows_only_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "rows.json"
    source.write_text(json.dumps([{"id": 0}, {"id": 1}, make_record(0, 0)]))
    for _ in range(2):
        report = convert_llava(source, [tmp_path], tmp_path / "out", samples_per_shard=2)
        assert (report.samples, report.shards, len(report.rejected)) == (1, 1, 2)


def test_the_first_folder_with_the_image_wins(tmp_path: Path) -> None:
    for name, number in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(make_image(number))
    source = tmp_path / "rows.json"
    source.write_text(json.dumps([make_record(0) | {"id": 7, "image": "x.jpg"}]))
    convert_llava(source, [tmp_path / "b", tmp_path / "a"], tmp_path / "out")
    sample = ShardSet.open(str(tmp_path / "out"))[0]
    assert sample.images == (make_image(2),) and sample.record["source_id"] == 7


@pytest.mark.parametrize("given", ["link", "images"])
@pytest.mark.parametrize("named", ["link", "images"])
def test_a_folder_behind_a_link_holds_its_images(tmp_path: Path, given: str, named: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.jpg").write_bytes(make_image(1))
    (tmp_path / "link").symlink_to(tmp_path / "images")
    source = tmp_path / "rows.json"
    source.write_text(json.dumps([make_record(0) | {"image": str(tmp_path / named / "x.jpg")}]))
    report = convert_llava(source, [tmp_path / given], tmp_path / "out")
    assert (report.samples, report.rejected) == (1, [])


def test_an_answer_without_a_question_is_left_out(tmp_path: Path) -> None:
    row = make_record(3, 0)
    row["conversations"].insert(0, {"from": "gpt", "value": "As I said:"})
    (tmp_path / "rows.json").write_text(json.dumps([row, make_record(4, 0)]))
    assert convert_llava(tmp_path / "rows.json", [tmp_path], tmp_path / "out").rejected == []
    first, second = ShardSet.open(str(tmp_path / "out")).usable()
    assert first.record["conversations"] == make_record(3, 0)["conversations"]
    assert first.record["dropped_turns"] == 1 and "dropped_turns" not in second.record


def test_caps_of_a_conversion_hold_for_all_who_read_its_shards(tmp_path: Path) -> None:
    """Above the defaults: a picture of many pixels, and a small one in a file of many bytes."""
    usual = Limits()
    raised = Limits(2 * usual.member_bytes, 2 * usual.pixels)
    Image.new("1", (usual.pixels // 5000 + 1, 5000)).save(tmp_path / "0.png")
    (tmp_path / "1.jpg").write_bytes(make_image(1) + bytes(usual.member_bytes))
    rows = [make_record(number) | {"image": name} for number, name in enumerate(("0.png", "1.jpg"))]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    report = convert_llava(tmp_path / "rows.json", [tmp_path], tmp_path / "out", limits=raised)
    assert report.samples == 2
    sizes = [sample.pictures[0].size for sample in ShardSet.open(str(tmp_path / "out")).usable()]
    assert sizes == [(10001, 5000), (24, 16)]


def test_folders_with_prefixes_of_their_own_are_trained_on_together(
    source: Path, tmp_path: Path
) -> None:
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    for folder, prefix in zip(folders, ("", "coco/1-"), strict=True):
        convert_llava(source, [tmp_path / "images"], folder, key_prefix=prefix)
    both = ShardSet.open(folders)
    both.check_keys()
    assert [both[number].key for number in (3, 63)] == ["000000003", "coco/1-000000003"]
    assert [both[number].images for number in range(60)] == [
        both[60 + number].images for number in range(60)
    ]
    with pytest.raises(ConfigError, match="other settings"):
        convert_llava(source, [tmp_path / "images"], folders[1], key_prefix="coco/2-")
    with pytest.raises(ConfigError, match=r"key_prefix='a\.b' must match"):
        convert_llava(source, [tmp_path / "images"], tmp_path / "c", key_prefix="a.b")


def test_a_conversion_noted_before_there_were_prefixes_is_completed(
    source: Path, tmp_path: Path
) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    convert_llava(source, [images], output)
    note = output / ".convert" / "plan.json"
    plan = json.loads(note.read_text())
    del plan["key_prefix"]
    note.write_text(json.dumps(plan))
    assert convert_llava(source, [images], output).samples == 60


def test_a_second_conversion_into_the_same_folder_is_refused(source: Path, tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    convert_llava(source, [images], output)
    before = content(output)
    script = (
        "import sys, time; from autoselect.data import convert; decode = convert.read_image;"
        "convert.read_image = lambda *a: (time.sleep(60), decode(*a))[1];"
        "convert.convert_llava(sys.argv[1], [sys.argv[2]], sys.argv[3])"
    )
    (output / ".convert" / "000000.json").unlink()
    process = subprocess.Popen([sys.executable, "-c", script, source, images, output])
    try:
        while not (found := list(output.glob("*.partial"))) and process.poll() is None:
            time.sleep(0.01)
        with pytest.raises(ConfigError, match="is being written by another conversion"):
            convert_llava(source, [images], output)
        assert found and list(output.glob("*.partial")) == found
    finally:
        process.kill()
        process.wait()
    convert_llava(source, [images], output)
    assert content(output) == before


def test_wrong_arguments_are_refused(source: Path, tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    with pytest.raises(ConfigError, match="samples_per_shard=0"):
        convert_llava(source, [images], output, samples_per_shard=0)
    with pytest.raises(ConfigError, match="image_folder="):
        convert_llava(source, [tmp_path / "none"], output)
    with pytest.raises(ConfigError, match="source="):
        convert_llava(tmp_path / "none.json", [images], output)
    (tmp_path / "bad.json").write_text("[{]")
    with pytest.raises(ConfigError, match="JSON list or JSON lines"):
        convert_llava(tmp_path / "bad.json", [images], output)
    convert_llava(source, [images], output, samples_per_shard=30)
    with pytest.raises(ConfigError, match="other settings"):
        convert_llava(source, [images], output, samples_per_shard=31)
