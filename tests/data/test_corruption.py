"""Every kind of damage is found and named, and never changes what a sample says."""

import contextlib
import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from autoselect.config import ConfigError
from autoselect.data.decode import ImageError, Limits, read_image
from autoselect.data.faults import BadSample, Fault
from autoselect.data.index import build_index, sidecar
from autoselect.data.quarantine import Quarantine, QuarantineBudgetError
from autoselect.data.shards import Sample, ShardSet
from autoselect.data.verify import VerifyJob, verify_shard
from tests.data.loaders import make_loader
from tests.data.shard_samples import make_image, make_record, raw_shard, write_shards


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Return one shard of ten samples, `000000` .. `000009`, with its index."""
    return write_shards(tmp_path / "one", samples=10) / "shard-000000.tar"


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ mask]))


def forget_index(shard: Path) -> None:
    Path(sidecar(str(shard))).unlink()


def record_bytes(number: int, **fields: object) -> bytes:
    return json.dumps(make_record(number) | fields).encode()


def found(shard: Path, **options: bool) -> list[tuple[str, str, int]]:
    report = verify_shard(VerifyJob(str(shard), **options))
    return [(fault.kind, fault.key, fault.offset) for fault in report.faults]


def test_an_intact_shard_has_no_faults(shard: Path) -> None:
    assert found(shard) == []
    assert found(shard, decode=True) == []


def test_any_flipped_bit_is_found_and_no_sample_changes(shard: Path) -> None:
    original = shard.read_bytes()
    shards = ShardSet.open(str(shard))
    whole = [shards[number] for number in range(10)]
    starts = [sample.offset for sample in whole]
    choose = random.Random(0)
    for _ in range(150):
        offset, mask = choose.randrange(len(original)), 1 << choose.randrange(8)
        flip(shard, offset, mask)
        faults = found(shard)
        assert faults, f"flip of {mask} at {offset} was not noticed"
        bad = []
        for number in range(10):
            try:
                assert shards[number] == whole[number]
            except BadSample as error:
                bad.append((error.fault.kind, error.fault.key, error.fault.offset))
        assert bad == [fault for fault in faults if fault[1]]
        if bad:
            owner = max(number for number in range(10) if starts[number] <= offset)
            assert [key for _, key, _ in bad] == [f"{owner:06d}"]
        flip(shard, offset, mask)
    assert shard.read_bytes() == original


def test_header_and_payload_damage_are_told_apart(shard: Path) -> None:
    _, _, entries = ShardSet.open(str(shard)).locate(4)
    flip(shard, entries[0].start + 3)
    assert found(shard) == [("header", "000004", entries[0].start)]
    flip(shard, entries[0].start + 3)
    flip(shard, entries[1].data + 5)
    assert found(shard) == [("payload", "000004", entries[0].start)]


def test_any_flip_in_a_header_is_found_without_an_index(shard: Path) -> None:
    entries = [ShardSet.open(str(shard)).locate(number)[2] for number in range(10)]
    choose = random.Random(1)
    for _ in range(60):
        number = choose.randrange(10)
        image, text = entries[number]
        member = choose.choice([image, text])
        offset = member.start + choose.randrange(500)
        flip(shard, offset)
        index = build_index(str(shard))
        assert index.table.keys == [f"{n:06d}" for n in range(10) if n != number]
        faults = [(fault.kind, fault.key, fault.offset) for fault in index.header.faults]
        assert ("header", "", member.start) in faults
        survivor = text if member is image else image
        assert ("missing_member", f"{number:06d}", survivor.start) in faults
        flip(shard, offset)


def test_samples_after_an_erased_region_are_found_without_an_index(shard: Path) -> None:
    shards = ShardSet.open(str(shard))
    start, end = (shards.locate(number)[2][0].start for number in (3, 6))
    content = bytearray(shard.read_bytes())
    content[start:end] = bytes(end - start)
    shard.write_bytes(content)
    index = build_index(str(shard))
    assert index.table.keys == [f"{number:06d}" for number in (0, 1, 2, 6, 7, 8, 9)]
    faults = [(fault.kind, fault.offset, fault.detail) for fault in index.header.faults]
    blocks = (end - start) // 512
    assert faults == [("header", start, f"{blocks} empty blocks inside of the archive")]


def test_joined_archives_lose_no_sample(shard: Path, tmp_path: Path) -> None:
    other = raw_shard(
        tmp_path / "other.tar", [("more.json", json.dumps(make_record(0, 0)).encode())]
    )
    shard.write_bytes(shard.read_bytes() + other.read_bytes())
    index = build_index(str(shard))
    assert index.table.keys == [f"{number:06d}" for number in range(10)] + ["more"]
    assert [fault.kind for fault in index.header.faults] == ["header"]


def test_a_shard_cut_anywhere_is_found_without_an_index(shard: Path) -> None:
    content = shard.read_bytes()
    ends = [ShardSet.open(str(shard)).locate(number)[2][-1].end for number in range(10)]
    archive_end = -(-ends[-1] // 512) * 512
    choose = random.Random(2)
    for length in [511, 512, 1024, archive_end, archive_end + 512] + [
        choose.randrange(1, archive_end) for _ in range(60)
    ]:
        shard.write_bytes(content[:length])
        header = build_index(str(shard)).header
        assert header.truncated
        assert [fault.kind for fault in header.faults].count("truncated") == 1
        assert header.samples in (sum(end <= length for end in ends), sum(e < length for e in ends))
        forget_index(shard)
        with pytest.raises(ConfigError, match="was cut before it was indexed|no usable samples"):
            ShardSet.open(str(shard))


def test_a_cut_shard_is_usable_once_accepted(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: ShardSet.open(str(shard)).locate(6)[2][0].start])
    forget_index(shard)
    shards = ShardSet.open(str(shard), accept_truncated=True)
    assert len(shards) == 6
    assert [fault.kind for fault in shards.faults] == ["truncated"]


def test_a_shard_cut_after_indexing_names_every_lost_sample(shard: Path) -> None:
    start = ShardSet.open(str(shard)).locate(7)[2][0].start
    shard.write_bytes(shard.read_bytes()[: start + 100])
    faults = found(shard)
    assert [(kind, key) for kind, key, _ in faults] == [
        ("truncated", "000007"),
        ("truncated", "000008"),
        ("truncated", "000009"),
        ("truncated", ""),
    ]
    assert faults[0][2] == start


def test_a_replaced_shard_is_refused(shard: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", samples=20) / "shard-000000.tar"
    shard.write_bytes(other.read_bytes())
    with pytest.raises(ConfigError, match="the index belongs to another file"):
        ShardSet.open(str(shard))


def test_a_damaged_index_is_refused(shard: Path) -> None:
    index = Path(sidecar(str(shard)))
    content = index.read_bytes()
    choose = random.Random(3)
    for offset in [choose.randrange(len(content)) for _ in range(60)] + [0, len(content) - 1]:
        index.write_bytes(content)
        flip(index, offset, 1 << choose.randrange(8))
        with pytest.raises(ConfigError, match="shards index"):
            _ = ShardSet.open(str(shard))[0]
        assert [kind for kind, _, _ in found(shard)] == ["unreadable"]


def test_wrong_contents_are_named_with_key_and_offset(tmp_path: Path) -> None:
    image = make_image(1)
    shard = raw_shard(
        tmp_path / "bad.tar",
        [
            ("good.jpg", image),
            ("good.json", record_bytes(0)),
            ("cut.jpg", image),
            ("cut.json", b'{"conversations": ['),
            ("list.json", b"[]"),
            ("turns.json", b'{"conversations": [{"from": "human"}]}'),
            ("reply.json", b'{"conversations": [{"from": "gpt", "value": "so"}]}'),
            ("half.json", b'{"conversations": [{"from": "human", "value": "\\ud83d"}]}'),
            ("noimage.json", record_bytes(0, image="noimage.jpg")),
            ("nojson.jpg", image),
            ("good.jpg", image),
            ("good.json", record_bytes(1)),
            ("twice.jpg", image),
            ("twice.jpg", image),
            ("twice.json", record_bytes(2)),
            ("fine.jpg", image),
            ("fine.json", record_bytes(3, image="elsewhere/3.jpg")),
        ],
    )
    shards = ShardSet.open(str(shard))
    assert [shards[number].key for number in range(len(shards))] == ["good", "fine"]
    with tarfile.open(shard) as archive:
        starts = {member.name: member.offset for member in reversed(archive.getmembers())}
        second_good = archive.getmembers()[10].offset
    assert [(fault.kind, fault.key, fault.offset) for fault in shards.faults] == [
        ("wrong_json", "cut", starts["cut.jpg"]),
        ("wrong_json", "list", starts["list.json"]),
        ("wrong_json", "turns", starts["turns.json"]),
        ("wrong_json", "reply", starts["reply.json"]),
        ("wrong_json", "half", starts["half.json"]),
        ("missing_member", "noimage", starts["noimage.json"]),
        ("missing_member", "nojson", starts["nojson.jpg"]),
        ("duplicate_key", "good", second_good),
        ("duplicate_key", "twice", starts["twice.jpg"]),
    ]
    assert all(fault.shard == str(shard) for fault in shards.faults)


def test_a_shard_without_any_usable_sample_says_why(tmp_path: Path) -> None:
    shard = raw_shard(tmp_path / "bad.tar", [("a.v2.jpg", make_image(1)), ("a.v2.txt", b"so")])
    said = f"no usable samples in 1 shards; correct what .* lists, first: {shard}: sample 'a' .*: m"
    with pytest.raises(ConfigError, match=said):
        ShardSet.open(str(shard))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_to_a_picture_is_named_instead_of_lost(tmp_path: Path, kind: bytes) -> None:
    """tar stores a second hard link of a file as a link, without its content."""
    shard = tmp_path / "links.tar"
    with tarfile.open(shard, "w") as archive:
        for number in range(2):
            picture = tarfile.TarInfo(f"{number}.jpg")
            if number:
                picture.type, picture.linkname = kind, "0.jpg"
            members = [(picture, b"" if number else make_image(1))]
            members.append((tarfile.TarInfo(f"{number}.json"), record_bytes(number)))
            for info, data in members:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    shards = ShardSet.open(str(shard))
    assert [shards[number].key for number in range(len(shards))] == ["0"]
    (fault,) = shards.faults
    assert (fault.kind, fault.key) == ("unsupported", "1") and "link to 0.jpg" in fault.detail


def test_duplicate_keys_across_shards_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", samples=3)
    write_shards(tmp_path / "b", samples=2)
    shards = ShardSet.open([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(ConfigError, match="'000000' is in .*a/.* and again in .*b/.* at byte 0"):
        make_loader(shards, list, seed=0, micro_batch=1)


def test_oversized_members_and_images_are_named(tmp_path: Path) -> None:
    big = make_image(0, size=(300, 300), kind="BMP")
    shard = raw_shard(
        tmp_path / "big.tar",
        [
            ("a.bmp", big),
            ("a.json", record_bytes(0)),
            ("b.jpg", make_image(1)),
            ("b.json", record_bytes(1)),
        ],
    )
    few_bytes = ShardSet.open(
        str(shard), limits=Limits(member_bytes=10_000), index_folder=str(tmp_path / "small")
    )
    assert [(fault.kind, fault.key) for fault in few_bytes.faults] == [("too_large", "a")]
    shards = ShardSet.open(str(shard), limits=Limits(pixels=89_999))
    with pytest.raises(BadSample, match="300 x 300 pixels exceed the cap of 89999") as caught:
        _ = shards[0].pictures
    assert (caught.value.fault.kind, caught.value.fault.key) == ("too_large", "a")
    assert shards[1].pictures[0].size == (24, 16)
    strict = ShardSet.open(str(shard), limits=Limits(member_bytes=10_000))
    with pytest.raises(BadSample, match="the cap is 10000"):
        _ = strict[0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_undecodable_images_are_named(tmp_path: Path, kind: str) -> None:
    picture = make_image(0, (200, 200), kind)
    suffix = {"JPEG": "jpg", "PNG": "png"}[kind]
    for number, data in enumerate([b"text", picture[: len(picture) // 2], b""]):
        members = [(f"x.{suffix}", data), ("x.json", record_bytes(0))]
        shard = raw_shard(tmp_path / f"{number}.tar", members)
        with pytest.raises(BadSample) as caught:
            _ = ShardSet.open(str(shard))[0].pictures
        assert (caught.value.fault.kind, caught.value.fault.key) == ("undecodable", "x")
        assert found(shard, decode=True) == [("undecodable", "x", 0)]


def tiff(tag: int, kind: int) -> bytes:
    """Return a picture whose directory gives another type to what one of its tags holds."""
    data = bytearray(make_image(0, kind="TIFF"))
    first = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[first : first + 2], "little")
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        if int.from_bytes(data[entry : entry + 2], "little") == tag:
            data[entry + 2 : entry + 4] = kind.to_bytes(2, "little")
    return bytes(data)


@pytest.mark.parametrize("tag", [256, 257, 273, 278])
def test_a_directory_with_a_wrong_type_is_damage(tag: int) -> None:
    for kind in range(14):
        with contextlib.suppress(ImageError):
            assert read_image(tiff(tag, kind)).mode == "RGB"


def rows(samples: list[Sample]) -> list[tuple[int, bool, int, int]]:
    return [
        (s.sample_id, s.quarantined, len(s.pictures), len(s.record["conversations"]))
        for s in samples
    ]


def test_usable_samples_are_those_without_damage(shard: Path, caplog) -> None:
    shards = ShardSet.open(str(shard))
    for number in (2, 7):
        flip(shard, shards.locate(number)[2][0].data + 5)
    seen = [sample.sample_id for sample in shards.usable()]
    assert seen == [0, 1, 3, 4, 5, 6, 8, 9]
    assert "'000002'" in caplog.text and "'000007'" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_counted_once_and_replaced_by_blanks(
    shard: Path, tmp_path: Path, workers: int
) -> None:
    shards = ShardSet.open(str(shard))
    flip(shard, shards.locate(3)[2][0].data + 5)
    listing = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(10, budget=0.1, path=listing)
    loader = make_loader(
        shards, rows, seed=0, micro_batch=5, quarantine=quarantine, stop_step=6, workers=workers
    )
    seen = [row for step in loader for micro_batch in step for row in micro_batch]
    assert len(seen) == 30
    assert [row for row in seen if row[1]] == [(3, True, 0, 1)] * 3
    assert all(row[2:] == (1, 2) for row in seen if not row[1])
    assert quarantine.count == 1
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    assert [(line["kind"], line["key"]) for line in lines] == [("payload", "000003")]
    assert Quarantine(10, path=listing).faults == quarantine.faults


def test_the_budget_ends_the_run(shard: Path) -> None:
    shards = ShardSet.open(str(shard))
    flip(shard, shards.locate(3)[2][0].data + 5)
    with pytest.raises(QuarantineBudgetError, match="1 of 10 samples are unusable.*000003"):
        list(make_loader(shards, rows, seed=0, micro_batch=10, stop_step=1))


@pytest.mark.parametrize(("kind", "damaged"), [("no_answer", False), ("payload", True)])
def test_an_exceeded_budget_says_what_helps(kind, damaged: bool) -> None:
    faults = [Fault(kind, "a.tar", f"{number}", number, "") for number in range(3)]
    with pytest.raises(QuarantineBudgetError) as caught:
        Quarantine(47, budget=0.001).add(faults)
    said = str(caught.value)
    assert "this run goes on with data.quarantine_budget=0.064 or more" in said
    assert "are other data, so train on them from the start, with another output" in said
    assert ("`autoselect shards verify --decode` lists" in said) == damaged
    Quarantine(47, budget=0.064).add(faults)


def test_faults_of_the_index_count_against_the_budget(tmp_path: Path) -> None:
    members = [("a.json", json.dumps(make_record(0, 0)).encode()), ("b.jpg", make_image(0))]
    shards = ShardSet.open(str(raw_shard(tmp_path / "x.tar", members)))
    with pytest.raises(QuarantineBudgetError, match="1 of 2 samples"):
        make_loader(shards, rows, seed=0, micro_batch=1)
    loader = make_loader(shards, rows, seed=0, micro_batch=1, quarantine=Quarantine(2, budget=0.5))
    assert loader.quarantine.count == 1


def test_the_default_budget_is_a_thousandth() -> None:
    quarantine = Quarantine(3000)
    quarantine.merge(Fault("payload", "a.tar", f"{number}", number, "") for number in range(3))
    quarantine.check()
    quarantine.merge([Fault("payload", "a.tar", "3", 3, "")])
    with pytest.raises(QuarantineBudgetError, match="4 of 3000"):
        quarantine.check()


def test_lists_of_other_ranks_count_but_are_not_written_again(tmp_path: Path) -> None:
    mine, other = tmp_path / "quarantine-0.jsonl", tmp_path / "quarantine-1.jsonl"
    faults = [Fault("payload", "a.tar", f"{number}", number, "") for number in range(3)]
    Quarantine(10, 1.0, other).add(faults[:2])
    quarantine = Quarantine(10, 1.0, mine, [other])
    quarantine.add(faults)
    assert quarantine.count == 3 and len(mine.read_text().splitlines()) == 1


def test_a_cut_line_of_the_listing_is_dropped(shard: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.jsonl"
    shards = ShardSet.open(str(shard))
    flip(shard, shards.locate(0)[2][0].data)
    flip(shard, shards.locate(1)[2][0].data)
    faults = verify_shard(VerifyJob(str(shard))).faults
    Quarantine(10, budget=1, path=listing).add(faults)
    listing.write_text(listing.read_text()[:-9])
    again = Quarantine(10, budget=1, path=listing)
    assert again.count == 1
    again.add(faults)
    assert again.count == 2
    assert len([json.loads(line) for line in listing.read_text().splitlines()]) == 2


@pytest.mark.parametrize("line", [b"\0\0\0", b"{}", b"[]", b"\xff\xfe", b'{"kind": "x"}'])
def test_a_damaged_line_of_the_listing_is_dropped(tmp_path: Path, line: bytes) -> None:
    listing = tmp_path / "list.jsonl"
    faults = [Fault("payload", "a.tar", f"{number}", number, "") for number in range(2)]
    Quarantine(10, budget=1, path=listing).add(faults)
    first, second = listing.read_bytes().splitlines(keepends=True)
    listing.write_bytes(first + line + b"\n" + second)
    assert Quarantine(10, budget=1, path=listing).faults == faults
    assert listing.read_bytes() == first + second
