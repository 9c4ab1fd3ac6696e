"""Shards are written, read by number, and stay standard WebDataset files."""

import errno
import hashlib
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import webdataset

from autoselect.config import ConfigError
from autoselect.data.decode import ImageError, Limits
from autoselect.data.faults import RecordError
from autoselect.data.shards import ShardSet, ShardWriter
from tests.data.shard_samples import make_image, make_record, write_shards


def test_samples_come_back_as_written(shard_folder: Path) -> None:
    shards = ShardSet.open(str(shard_folder))
    assert len(shards) == 50
    assert [header.samples for header in shards.headers] == [20, 20, 10]
    for number in range(50):
        sample = shards[number]
        assert (sample.key, sample.sample_id) == (f"{number:06d}", number)
        assert sample.images == (make_image(number),)
        assert sample.record["conversations"] == make_record(number)["conversations"]
        assert sample.record["image"] == f"{sample.key}.jpg"
        assert sample.pictures[0].mode == "RGB" and sample.pictures[0].size == (24, 16)
    with pytest.raises(IndexError):
        shards[50]
    with pytest.raises(IndexError):
        shards[-1]


def test_many_images_keep_their_order_and_text_only_rows_have_none(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write("many", make_record(0, 12), [make_image(part) for part in range(12)])
        writer.write("text", make_record(0, 0), [])
        writer.write("png", make_record(0, 1), [make_image(3, kind="PNG")])
    shards = ShardSet.open(str(tmp_path))
    assert shards[0].images == tuple(make_image(part) for part in range(12))
    assert shards[1].images == () and "image" not in shards[1].record
    assert shards[2].record["image"] == "png.png"


def test_the_same_calls_give_the_same_bytes(tmp_path: Path) -> None:
    folders = [write_shards(tmp_path / name) for name in ("a", "b")]
    files = [sorted(folder.iterdir()) for folder in folders]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_webdataset_reads_our_shards(shard_folder: Path) -> None:
    pattern = str(shard_folder / "shard-{000000..000002}.tar")
    seen = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in seen] == [f"{number:06d}" for number in range(50)]
    ours = ShardSet.open(pattern)
    for number in (0, 21, 49):
        assert np.array_equal(seen[number]["jpg"], np.asarray(ours[number].pictures[0]))
        assert seen[number]["json"] == ours[number].record


@pytest.mark.parametrize("tar_format", ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"])
def test_we_read_shards_that_webdataset_wrote(tmp_path: Path, tar_format: str) -> None:
    path = tmp_path / "other.tar"
    long_key = "folder/" + "k" * (150 if tar_format != "USTAR_FORMAT" else 60)
    with webdataset.TarWriter(str(path), format=tar_format) as writer:
        for number, key in enumerate(["a", long_key, "ünïcode"]):
            record = make_record(number) | {"image": f"coco/train/{number}.jpg"}
            writer.write({"__key__": key, "jpg": make_image(number), "json": record})
    shards = ShardSet.open(str(path))
    assert [shards[number].key for number in range(3)] == ["a", long_key, "ünïcode"]
    assert [shards[number].images[0] for number in range(3)] == [make_image(n) for n in range(3)]
    assert shards.faults == []


def test_the_digest_tells_data_apart(tmp_path: Path) -> None:
    first = ShardSet.open(str(write_shards(tmp_path / "a")))
    again = ShardSet.open(str(write_shards(tmp_path / "b")))
    other = ShardSet.open(str(write_shards(tmp_path / "c", samples=49)))
    turned = ShardSet.open(list(reversed(first.shards)))
    assert first.digest == again.digest
    assert len({first.digest, other.digest, turned.digest}) == 3


def test_a_set_survives_pickling(shard_folder: Path) -> None:
    shards = ShardSet.open(str(shard_folder))
    _ = shards[3]
    copy = pickle.loads(pickle.dumps(shards))
    assert copy[3] == shards[3] and copy.digest == shards.digest


def test_a_missing_index_is_built_again(shard_folder: Path) -> None:
    index = shard_folder / "shard-000001.tar.index.jsonl"
    content = index.read_bytes()
    index.unlink()
    assert len(ShardSet.open(str(shard_folder))) == 50
    assert index.read_bytes() == content


def test_an_index_written_before_caps_were_noted_has_the_defaults(tmp_path: Path) -> None:
    index = write_shards(tmp_path, samples=3) / "shard-000000.tar.index.jsonl"
    head, _, rest = index.read_bytes().partition(b"\n")
    fields = json.loads(head)
    del fields["limits"], fields["check"]
    line = json.dumps(fields, separators=(",", ":")) + "\n"
    fields["check"] = hashlib.sha256(line.encode()).hexdigest()[:16]
    index.write_bytes(json.dumps(fields).encode() + b"\n" + rest)
    assert [sample.limits for sample in ShardSet.open(str(tmp_path)).usable()] == [Limits()] * 3


def test_an_interrupted_writer_leaves_no_half_shard(tmp_path: Path) -> None:
    with pytest.raises(RecordError), ShardWriter(tmp_path, samples_per_shard=3) as writer:
        for number in range(5):
            writer.write(f"{number}", make_record(number), [make_image(number)])
        writer.write("bad", {"conversations": []}, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "shard-000000.tar",
        "shard-000000.tar.index.jsonl",
    ]


@pytest.mark.parametrize("method", ["write", "close"])
def test_a_full_disk_leaves_no_part_of_a_shard_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The end of the archive, which is written after an error too, does not fit either."""

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    close = webdataset.TarWriter.close
    monkeypatch.setattr(webdataset.TarWriter, "close", lambda tar: full(close(tar)))
    if method == "write":
        monkeypatch.setattr(webdataset.TarWriter, "write", full)
    with pytest.raises(OSError, match="No space.*shard-000000.tar'") as caught:
        with ShardWriter(tmp_path) as writer:
            writer.write("0", make_record(0), [make_image(0)])
    assert not list(tmp_path.iterdir()), caught


@pytest.mark.parametrize("key", ["", "a.b", "../x", "/x", "__meta", "a/__meta", "a b"])
def test_keys_that_webdataset_would_cut_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path) as writer, pytest.raises(ConfigError, match="key="):
        writer.write(key, make_record(0, 0), [])


def test_the_writer_refuses_what_no_reader_could_use(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write("a", make_record(0, 0), [])
        with pytest.raises(ConfigError, match="written before"):
            writer.write("a", make_record(0, 0), [])
        with pytest.raises(RecordError, match="2 <image> placeholders for 1 images"):
            writer.write("b", make_record(0, 2), [make_image(0)])
        with pytest.raises(ImageError):
            writer.write("c", make_record(0, 1), [b"no image"])
    assert len(ShardSet.open(str(tmp_path))) == 1


def test_patterns_and_lists_name_the_same_shards(shard_folder: Path) -> None:
    whole = ShardSet.open(str(shard_folder))
    for paths in (
        str(shard_folder / "shard-*.tar"),
        str(shard_folder / "shard-{000000..000002}.tar"),
        [str(shard_folder / f"shard-00000{number}.tar") for number in range(3)],
    ):
        assert ShardSet.open(paths).digest == whole.digest


def test_paths_without_shards_are_refused(tmp_path: Path, shard_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    shard = str(shard_folder / "shard-000000.tar")
    for paths in (str(tmp_path / "empty"), str(tmp_path / "none.tar"), []):
        with pytest.raises(ConfigError):
            ShardSet.open(paths)
    with pytest.raises(ConfigError, match="twice"):
        ShardSet.open([shard, shard])
    with pytest.raises(ConfigError, match="a brace without its partner"):
        ShardSet.open(str(tmp_path / "{a.tar"))


def test_compressed_and_foreign_files_are_refused(tmp_path: Path) -> None:
    import gzip
    import tarfile

    plain = write_shards(tmp_path / "plain", samples=2) / "shard-000000.tar"
    packed = tmp_path / "packed.tar"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(ConfigError, match="gzip"):
        ShardSet.open(str(packed))
    empty = tmp_path / "empty.tar"
    with tarfile.open(empty, "w") as archive:
        archive.addfile(tarfile.TarInfo("README"), io.BytesIO())
    with pytest.raises(ConfigError, match="no samples"):
        ShardSet.open(str(empty))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_of_json_are_refused_by_name_before_anything_is_written(
    tmp_path: Path, shard_folder: Path, name: str
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    rows = folder / name
    rows.write_text("[]")
    for paths in (str(rows), f"{folder}/*", [str(shard_folder), str(rows)], f"s3://a/{name}"):
        with pytest.raises(ConfigError, match=rf"{name} is JSON.*convert-llava"):
            ShardSet.open(paths)
    assert list(folder.iterdir()) == [rows]


def test_the_index_is_readable_json(shard_folder: Path) -> None:
    header, keys, *members = (
        json.loads(line)
        for line in (shard_folder / "shard-000000.tar.index.jsonl").read_text().splitlines()
    )
    assert header["samples"] == len(keys) == len(members) == 20
    content = (shard_folder / "shard-000000.tar").read_bytes()
    suffix, _, data, size, _ = members[4][0]
    assert suffix == "jpg" and content[data : data + size] == make_image(4)


@pytest.mark.parametrize("name", ["a [b]", "x {a,b}", 'o\'dd "ü" *'])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = write_shards(tmp_path / name, samples=4, per_shard=2)
    for pattern in (f"{folder}/*.tar", f"{folder}/shard-{{000000..000001}}.tar", str(folder)):
        assert len(ShardSet.open(pattern)) == 4
