"""Captions become rounds that the training reads; broken rows are listed and left out."""

import io
import json
import tarfile

import pytest
from PIL import Image

from autoselect.cli.main import main
from autoselect.config import ConfigError
from autoselect.data.captions import caption_row, convert_caption_rows, convert_caption_shards
from autoselect.data.shards import ShardSet
from autoselect.reference.corpus import to_jpeg


def jpeg(colour):
    return to_jpeg(Image.new("RGB", (16, 16), colour))


def answers(folder):
    shards = ShardSet.open(str(folder / "shard-*.tar"))
    samples = [shards[number] for number in range(len(shards))]
    assert all(sample.pictures for sample in samples)
    return [[turn["value"] for turn in one.record["conversations"]] for one in samples]


def tar(path, members):
    with tarfile.open(path, "w") as written:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            written.addfile(info, io.BytesIO(data))


def test_json_lines_of_image_and_caption_become_rounds(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(jpeg("red"))
    rows = [
        {"image": "a.jpg", "caption": " a red square "},
        {"file_name": "a.jpg", "captions": ["red", "all of it is red"]},
        {"image": "a.jpg", "caption": "  "},
        {"image": "missing.jpg", "caption": "nothing"},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    words = ["shards", "convert-captions", str(source), "--images", str(tmp_path)]
    out = tmp_path / "out"
    assert main([*words, "--output", str(out), "--workers", "1", "--prompt", "What is it?"]) == 1
    assert "4 rows, 2 samples in 1 shards, 2 rejected" in capsys.readouterr().out
    assert answers(out) == [
        ["<image>\nWhat is it?", "a red square"],
        ["<image>\nWhat is it?", "all of it is red"],
    ]
    left_out = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [row["row"] for row in left_out] == [2, 3]
    again = convert_caption_rows(source, [tmp_path], out, "What is it?")
    assert (again.samples, len(again.rejected)) == (2, 2)
    with pytest.raises(ConfigError, match="other settings"):
        convert_caption_rows(source, [tmp_path], out, "And now?")


def test_a_row_of_another_kind_is_not_taken_for_a_caption():
    assert caption_row("text", "?")["conversations"] == []
    assert caption_row({"image": "a.jpg", "caption": 3}, "?")["conversations"] == []


def test_webdataset_with_texts_becomes_shards(tmp_path, capsys):
    tar(
        tmp_path / "in-0.tar",
        [
            ("x/1.jpg", jpeg("red")),
            ("x/1.txt", b"a red square\n"),
            ("x/2.jpg", jpeg("blue")),
            ("x/2.txt", b""),
            ("x/3.txt", b"no picture"),
        ],
    )
    tar(tmp_path / "in-1.tar", [("1.jpg", b"broken"), ("1.txt", b"?"), ("2.png", jpeg("blue"))])
    tar(tmp_path / "in-2.tar", [("1.txt", b"a blue square"), ("1.jpg", jpeg("blue"))])
    sources = [str(tmp_path / f"in-{number}.tar") for number in range(3)]
    out = tmp_path / "out"
    command = ["shards", "convert-captions", *sources, "--output", str(out), "--workers", "1"]
    assert main([*command, "--max-rejected", "0.9"]) == 0
    assert "6 rows, 2 samples in 3 shards, 4 rejected" in capsys.readouterr().out
    assert answers(out) == [
        ["<image>\nDescribe the image.", "a red square"],
        ["<image>\nDescribe the image.", "a blue square"],
    ]
    left_out = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(row["id"], row["kind"]) for row in left_out] == [
        ("x/2", "wrong_json"),
        ("x/3", "unreadable"),
        ("1", "undecodable"),
        ("2", "wrong_json"),
    ]
    with pytest.raises(ConfigError, match="is not a tar file"):
        convert_caption_shards([tmp_path / "none.tar"], out)
