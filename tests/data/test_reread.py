"""A sample that was unusable counts as long as it is, and no longer."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from autoselect.data.decode import Limits
from autoselect.data.faults import BadSample, Fault
from autoselect.data.index import IndexJob, index_shard, sidecar
from autoselect.data.quarantine import Quarantine, QuarantineBudgetError
from autoselect.data.reread import still_unusable
from autoselect.data.shards import Sample, ShardSet
from autoselect.data.verify import VerifyJob, verify_shard
from autoselect.data.writer import ShardWriter
from autoselect.training.shared_quarantine import SharedQuarantine
from tests.data.shard_samples import make_record, write_shards


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Write ten samples, of which 2 and 5 are damaged."""
    path = write_shards(tmp_path / "data", samples=10) / "shard-000000.tar"
    shards, content = ShardSet.open(str(path)), bytearray(path.read_bytes())
    for number in (2, 5):
        content[shards.locate(number)[2][0].data + 5] ^= 1
    path.write_bytes(content)
    return path


def repair(shard: Path, number: int) -> None:
    whole = (write_shards(shard.parent / "whole", samples=10) / shard.name).read_bytes()
    members = ShardSet.open(str(shard)).locate(number)[2]
    content = bytearray(shard.read_bytes())
    content[members[0].start : members[-1].end] = whole[members[0].start : members[-1].end]
    shard.write_bytes(content)


def keys(faults: Sequence[Fault]) -> list[str]:
    return [fault.key for fault in faults]


def test_what_was_repaired_is_usable(shard: Path) -> None:
    listed = verify_shard(VerifyJob(str(shard))).faults
    assert keys(listed) == ["000002", "000005"]
    assert still_unusable(ShardSet.open(str(shard)), list, listed) == listed
    repair(shard, 2)
    assert still_unusable(ShardSet.open(str(shard)), list, listed) == listed[1:]
    repair(shard, 5)
    assert still_unusable(ShardSet.open(str(shard)), list, listed) == []


def test_a_setting_may_make_a_sample_usable(shard: Path) -> None:
    shards = ShardSet.open(str(shard))

    def short_only(samples: list[Sample]) -> None:
        for sample in samples:
            if sample.key == "000003":
                raise BadSample(Fault("too_long", sample.shard, sample.key, sample.offset, ""))

    sample = shards[3]
    listed = [Fault("too_long", sample.shard, sample.key, sample.offset, "")]
    assert still_unusable(shards, short_only, listed) == listed
    assert still_unusable(shards, list, listed) == []


def test_what_the_index_leaves_out_is_unusable_until_it_is_indexed_again(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, samples=3)
    shard = str(folder / "shard-000000.tar")
    with ShardWriter(folder, first_shard=1) as writer:
        writer.write("text", make_record(4, 0), [])
    strict = IndexJob(shard, limits=Limits(member_bytes=10), rebuild=True)
    listed = list(index_shard(strict).faults)
    assert keys(listed) == ["000000", "000001", "000002"]
    assert still_unusable(ShardSet.open(str(folder)), list, listed) == listed
    index_shard(IndexJob(shard, rebuild=True))
    assert still_unusable(ShardSet.open(str(folder)), list, listed) == []


def test_a_sample_that_left_the_data_is_not_unusable(shard: Path) -> None:
    listed = verify_shard(VerifyJob(str(shard))).faults
    Path(sidecar(str(shard))).unlink()
    with ShardWriter(shard.parent) as writer:
        writer.write("000007", make_record(7, 0), [])
    elsewhere = Fault("payload", "none.tar", "000007", 0, "")
    assert still_unusable(ShardSet.open(str(shard)), list, [*listed, elsewhere]) == []


@pytest.mark.parametrize("anew", [True, False])
def test_lists_say_what_the_run_left_out(shard: Path, tmp_path: Path, anew: bool) -> None:
    """A run that begins anew has left nothing out; one that goes on has."""
    mine, other = tmp_path / "quarantine-0.jsonl", tmp_path / "quarantine-1.jsonl"
    first, second = verify_shard(VerifyJob(str(shard))).faults
    Quarantine(10, 1.0, mine).add([first])
    Quarantine(10, 1.0, other).add([second])
    repair(shard, 2)
    shared = SharedQuarantine(Quarantine(10, 0.1, mine, [other]))
    assert (shared.quarantine.count, shared.new) == (2, 0)
    shards = ShardSet.open(str(shard))
    shared.reread(lambda faults: still_unusable(shards, list, faults), anew)
    assert (shared.quarantine.faults, shared.new) == ([second], 0)
    shared.quarantine.check()
    lines = [json.loads(line)["key"] for line in mine.read_text().splitlines()]
    assert (lines, other.exists()) == ((["000005"], False) if anew else (["000002"], True))
    with pytest.raises(QuarantineBudgetError, match="2 of 10"):
        shared.quarantine.add([first, second])  # damaged once more
    assert shared.new == 1
