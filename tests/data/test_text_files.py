"""Files of rows are read as people's tools write them, or refused by their real cause."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path

import pytest

from autoselect.config import ConfigError
from autoselect.data.benchmarks.driver import convert_public
from autoselect.data.benchmarks.table import BENCHMARKS
from autoselect.data.convert import convert_llava
from autoselect.data.shards import ShardSet
from autoselect.data.text_files import read_json_lines, read_json_rows, read_lines
from tests.data.official_files import MAKERS

SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
ROWS = [{"id": 1, "value": "café 猫"}, {"id": 2, "value": SEPARATORS.replace("\x0b", "")}]
ROWS[1]["value"] = "a\u2028b\u2029c\x85d"  # JSON may hold these unescaped
LIST = json.dumps(ROWS, ensure_ascii=False, indent=2)
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, LINES)
    return stream.getvalue()


READ = {
    "list": LIST.encode(),
    "list in one line": json.dumps(ROWS).encode(),
    "lines": LINES.encode(),
    "lines with an end": (LINES + "\n\n").encode(),
    "Windows lines": LINES.replace("\n", "\r\n").encode(),
    "old Macintosh lines": LINES.replace("\n", "\r").encode(),
    "commas after lines": LINES.replace("\n", ",\n").encode() + b",\n",
    "indented one after the other": "\n".join(json.dumps(r, indent=1) for r in ROWS).encode(),
    "byte-order mark": b"\xef\xbb\xbf" + LIST.encode(),
    "byte-order mark before lines": b"\xef\xbb\xbf" + LINES.encode(),
    **{
        f"{name} list": LIST.encode(name) for name in ("utf-16", "utf-16-le", "utf-32", "utf-32-be")
    },
    **{f"{name} lines": LINES.encode(name) for name in ("utf-16", "utf-16-be", "utf-32-le")},
    "UTF-16 Windows lines": LINES.replace("\n", "\r\n").encode("utf-16"),
    "gzip": gzip.compress(LINES.encode()),
    "gzip of UTF-16": gzip.compress(LIST.encode("utf-16")),
    "bzip2": bz2.compress(LIST.encode()),
    "xz": lzma.compress(LIST.encode()),
    "zip": zipped("rows.jsonl"),
    "zip of a Macintosh": zipped("rows.jsonl", "__MACOSX/._rows.jsonl"),
}


@pytest.mark.parametrize("name", READ)
def test_what_people_write_is_read(name, tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(READ[name])
    assert read_json_rows(path)[0] == ROWS
    assert read_json_lines(path) == ROWS


REFUSED = {
    "Latin-1": (LINES.encode("cp1252", "replace"), "is not UTF-8: byte 0xe9 in line 1; convert"),
    "GB18030": ('{"a": 1}\n{"v": "中文"}'.encode("gb18030"), "is not UTF-8: byte .* in line 2"),
    "empty": (b"", r"empty \(0 bytes\)"),
    "blank": (b" \n\n", "holds no rows; give a file with at least one"),
    "empty list": (b"[]", "holds no rows"),
    "trailing comma": (b'[{"a": 1},\n]', "line 2 column 1 follows a comma that no value follows"),
    "comma in an object": (b'{"a": 1}\n{"a": 1,}', "line 2 column 9 follows a comma"),
    "cut list": (b'[{"a": 1},\n{"a": "xy', "ends inside of a value that begins in line 2.*cut"),
    "cut lines": (b'{"a": 1}\n{"a": [1', "ends inside of a value .* line 2"),
    "single quotes": (b"{'a': 1}", "single quotes; JSON needs double"),
    "broken line": (b'{"a": 1}\n{"a" 1}\n{"a": 2}', "Expecting ':' delimiter: line 2 column 6"),
    "table": (b"id,image\n1,a.png", "Expecting value: line 1 column 1"),
    "deep": (b"[" * 200_000, "nested too deeply"),
    "wrapped": (
        json.dumps({"data": ROWS}).encode(),
        "one object with the keys data, not rows with conversations or a caption; write the list",
    ),
    "by id": (json.dumps({"1": ROWS[0]}).encode(), "one object with the keys 1, not rows with"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", "it is zstd-compressed; unpack it"),
    "tar": (bytes(100) + b"x" * 157 + b"ustar" + bytes(300), "a tar archive"),
    "tar.gz": (gzip.compress(b"x" * 257 + b"ustar" + bytes(300)), "a tar archive"),
    "cut gzip": (gzip.compress(LINES.encode())[:-9], "gzip-compressed, and unpacking it failed"),
    "broken gzip": (gzip.compress(LINES.encode())[:20] + b"x" * 40, "unpacking it failed"),
    "broken bzip2": (b"BZh9" + bytes(30), "bzip2-compressed, and unpacking it failed"),
    "zip of two": (zipped("a.json", "b.json"), "it holds 2 files instead of one"),
    "cut zip": (zipped("a.json")[:-30], "a zip archive, and unpacking it failed"),
    "Parquet": (b"PAR1" + bytes(20), "a Parquet file"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "web page": (b"<!DOCTYPE html>\n<html>", "an HTML page"),
    "holes": (bytes(4096), "filled with zero bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_its_cause(name, tmp_path):
    data, cause = REFUSED[name]
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"source=.*rows\.json.*{cause}"):
        read_json_rows(path)


def test_a_list_of_one_row_is_a_list_whatever_its_keys_are(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"image": {"path": "a.jpg"}, "caption": "red"}]))
    assert len(read_json_rows(path)[0]) == 1


def test_a_folder_or_nothing_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_json_rows(path)


def test_the_format_of_the_file_does_not_change_the_shards(tmp_path):
    turns = [{"from": "human", "value": "é\u2028?"}, {"from": "gpt", "value": "\x85"}]
    rows = [{"id": n, "conversations": turns} for n in range(3)]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    digests = set()
    for number, data in enumerate(
        (
            json.dumps(rows).encode(),
            text.encode(),
            text.encode("utf-16"),
            gzip.compress(text.encode()),
        )
    ):
        source = tmp_path / f"rows{number}"
        source.write_bytes(data)
        assert convert_llava(source, [tmp_path], tmp_path / f"out{number}").rejected == []
        digests.add(ShardSet.open(str(tmp_path / f"out{number}")).digest)
    assert len(digests) == 1


def test_lines_end_only_where_editors_end_them(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(SEPARATORS.encode() + b"\r\nnext\rlast\n")
    assert read_lines(path) == [SEPARATORS, "next", "last", ""]


@pytest.mark.parametrize("name", ["pope", "mme", "mmbench", "gqa"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "windows lines"])
def test_benchmarks_are_read_in_other_encodings(name, encoding, tmp_path):
    outputs = []
    for kind in ("utf-8", encoding):
        root = tmp_path / kind
        files = MAKERS[name](root)
        for path in (p for p in root.rglob("*") if p.suffix in (".json", ".txt", ".tsv")):
            text = path.read_text()
            lines = kind == "windows lines"
            data = text.replace("\n", "\r\n").encode() if lines else text.encode(kind)
            path.write_bytes(data)
        report = convert_public(BENCHMARKS[name], files, tmp_path / f"out {kind}")
        assert report.lost_questions == 0
        outputs.append(ShardSet.open(str(tmp_path / f"out {kind}")).digest)
    assert outputs[0] == outputs[1]


def test_separators_inside_of_a_question_do_not_split_a_file_of_lines(tmp_path):
    files = MAKERS["pope"](tmp_path)
    for path in files["questions"].iterdir():
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        for entry in entries:
            entry["text"] += "\u2028\x85?"
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
        path.write_text(text, encoding="utf-8")
    report = convert_public(BENCHMARKS["pope"], files, tmp_path / "out")
    assert report.questions == 6


def test_half_a_surrogate_pair_costs_its_row_only(tmp_path):
    files = MAKERS["gqa"](tmp_path)
    entries = json.loads(Path(files["questions"]).read_text())
    entries["201307251"]["question"] += "\ud83d"
    files["questions"].write_text(json.dumps(entries))
    report = convert_public(BENCHMARKS["gqa"], files, tmp_path / "out")
    assert [one.kind for one in report.conversion.rejected] == ["wrong_json"]
