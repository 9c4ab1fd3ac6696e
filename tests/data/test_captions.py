"""Captions become rounds that the training reads; broken rows are listed and left out."""

import io
import json
import tarfile

import pytest
from PIL import Image

from autoselect.cli.main import main
from autoselect.config import ConfigError
from autoselect.data.captions import convert_caption_rows, convert_caption_shards
from autoselect.data.decode import Limits
from autoselect.data.shards import ShardSet
from autoselect.reference.jpeg import to_jpeg


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
    assert left_out[0]["detail"] == "caption='  ' is not a text; write one per image"
    again = convert_caption_rows(source, [tmp_path], out, "What is it?")
    assert (again.samples, len(again.rejected)) == (2, 2)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="other settings"):
        convert_caption_rows(source, [tmp_path], out, "And now?")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_empty_column_does_not_hide_a_filled_one(tmp_path):
    """Tables that become JSON have every column in every row."""
    (tmp_path / "a.jpg").write_bytes(jpeg("red"))
    rows = [
        {"id": None, "image": None, "file_name": "a.jpg", "caption": None, "text": "red"},
        {"id": 7, "image": "", "path": "a.jpg", "caption": " ", "captions": [], "text": "a red"},
        {"id": None, "image": "a.jpg", "caption": None, "text": None},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    report = convert_caption_rows(tmp_path / "rows.json", [tmp_path], tmp_path / "out")
    assert [given[1] for given in answers(tmp_path / "out")] == ["red", "a red"]
    assert [(one.row, one.id) for one in report.rejected] == [(2, "")]
    assert report.rejected[0].detail == "caption=None is not a text; write one per image"


NO_CAPTION = {
    "text": ("red", "expected an object, found str"),
    "number": ({"image": "a.jpg", "caption": 3}, "caption=3 is not a text; write one per image"),
    "other keys": (
        {"image": "a.jpg", "label": "red"},
        "every row needs a caption as caption, text, long_caption or captions; the row has the "
        "keys image, label",
    ),
    "LLaVA": (
        {"image": "a.jpg", "conversations": []},
        "the row has the keys image, conversations; conversations are for `autoselect shards "
        "convert-llava`",
    ),
}


@pytest.mark.parametrize("name", NO_CAPTION)
def test_a_row_without_a_caption_is_rejected_by_its_cause(name, tmp_path):
    row, cause = NO_CAPTION[name]
    (tmp_path / "a.jpg").write_bytes(jpeg("red"))
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    (found,) = convert_caption_rows(tmp_path / "rows.json", [tmp_path], tmp_path / "out").rejected
    assert found.detail.endswith(cause)
    (listed,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(listed)["detail"] == found.detail


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
    assert "6 rows, 2 samples in 2 shards, 4 rejected" in capsys.readouterr().out
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


def test_a_tar_file_that_is_named_twice_is_refused(tmp_path):
    tar(tmp_path / "in.tar", [("1.jpg", jpeg("red")), ("1.txt", b"red")])
    (tmp_path / "link.tar").symlink_to("in.tar")
    for twice in ("in.tar", "link.tar"):
        with pytest.raises(ConfigError, match="in.tar comes twice; name every tar file once"):
            convert_caption_shards([tmp_path / "in.tar", tmp_path / twice], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_second_picture_is_not_dropped_without_a_word(tmp_path):
    tar(tmp_path / "in.tar", [("1.jpg", jpeg("red")), ("1.png", jpeg("blue")), ("1.txt", b"red")])
    (found,) = convert_caption_shards([tmp_path / "in.tar"], tmp_path / "out").rejected
    assert (found.kind, found.detail) == ("unsupported", "1 has jpg and png; keep one picture")


def of_many(path, count=20):
    red = jpeg("red")
    pairs = [((f"{n}.jpg", red), (f"{n}.txt", f"red {n}".encode())) for n in range(count)]
    tar(path, [member for pair in pairs for member in pair])
    with tarfile.open(path) as written:
        return bytearray(path.read_bytes()), [member.offset for member in written]


def test_a_damaged_header_loses_its_sample_alone_and_is_listed(tmp_path, capsys):
    data, headers = of_many(tmp_path / "in.tar")
    data[headers[10] + 3] ^= 0x55
    (tmp_path / "in.tar").write_bytes(data)
    out = tmp_path / "out"
    words = ["shards", "convert-captions", str(tmp_path / "in.tar"), "--output", str(out)]
    assert main([*words, "--workers", "1"]) == 1
    assert "19 samples in 1 shards, 2 rejected" in capsys.readouterr().out
    assert [one[1] for one in answers(out)] == [f"red {n}" for n in range(20) if n != 5]
    kinds = [json.loads(line)["kind"] for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert kinds == ["unreadable", "header"]


@pytest.mark.parametrize(("header", "more"), [(20, 0), (20, 700), (21, 100)])
def test_a_tar_file_that_is_cut_short_is_refused(tmp_path, header, more):
    data, headers = of_many(tmp_path / "in.tar")
    (tmp_path / "in.tar").write_bytes(data[: headers[header] + more])
    with pytest.raises(ConfigError, match="is cut short .* copy or download it again"):
        convert_caption_shards([tmp_path / "in.tar"], tmp_path / "out")
    assert not list((tmp_path / "out").glob("shard*"))


def test_a_member_that_comes_twice_is_not_paired_with_a_guess(tmp_path):
    red, blue = jpeg("red"), jpeg("blue")
    tar(tmp_path / "in.tar", [("1.jpg", red), ("1.txt", b"red"), ("1.jpg", blue)])
    report = convert_caption_shards([tmp_path / "in.tar"], tmp_path / "out")
    assert [one.kind for one in report.rejected] == ["duplicate_key"]
    assert (report.samples, report.shards) == (0, 0)


def test_a_folder_keeps_one_conversion(tmp_path):
    of_many(tmp_path / "in.tar", count=2)
    of_many(tmp_path / "other.tar", count=3)
    out = tmp_path / "out"
    sources = [tmp_path / "in.tar"]
    first = convert_caption_shards(sources, out)
    assert convert_caption_shards(sources, out) == first
    for changed in ({"prompt": "?"}, {"limits": Limits(pixels=9)}):
        with pytest.raises(ConfigError, match="other settings"):
            convert_caption_shards(sources, out, **changed)
    with pytest.raises(ConfigError, match="other settings"):
        convert_caption_shards([tmp_path / "other.tar"], out)


def test_captions_that_are_not_utf8_are_left_out_and_a_mark_of_the_order_is_not_text(tmp_path):
    texts = ["Café in Zürich".encode("latin-1"), "Nîmes".encode("utf-16"), b"\xef\xbb\xbfA dog"]
    members = [((f"{n}.jpg", jpeg("red")), (f"{n}.txt", text)) for n, text in enumerate(texts)]
    tar(tmp_path / "in.tar", [member for pair in members for member in pair])
    report = convert_caption_shards([tmp_path / "in.tar"], tmp_path / "out")
    assert [(one.id, one.kind) for one in report.rejected] == [
        ("0", "wrong_json"),
        ("1", "wrong_json"),
    ]
    assert [own[1] for own in answers(tmp_path / "out")] == ["A dog"]


def test_two_conversions_go_together_with_key_prefixes(tmp_path, capsys):
    of_many(tmp_path / "in.tar", count=2)
    (tmp_path / "a.jpg").write_bytes(jpeg("red"))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.jpg", "caption": "red"}))
    sources = [[str(tmp_path / "in.tar")]] * 2
    sources += [[str(tmp_path / "rows.jsonl"), "--images", str(tmp_path)]] * 2
    for number, source in enumerate(sources):
        words = ["shards", "convert-captions", *source, "--output", str(tmp_path / f"o{number}")]
        assert main([*words, "--workers=1", f"--key-prefix={'abcd'[number]}-"]) == 0
    both = ShardSet.open([str(tmp_path / f"o{number}") for number in range(4)])
    both.check_keys()
    assert [both[number].key[:2] for number in range(len(both))] == ["a-"] * 2 + ["b-"] * 2 + [
        "c-",
        "d-",
    ]


@pytest.mark.parametrize("flag", ["--images=.", "--samples-per-shard=5"])
def test_flags_of_json_rows_are_refused_beside_tar_files(tmp_path, flag):
    of_many(tmp_path / "in.tar", count=1)
    words = [
        "shards",
        "convert-captions",
        str(tmp_path / "in.tar"),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main([*words, flag]) == 2
