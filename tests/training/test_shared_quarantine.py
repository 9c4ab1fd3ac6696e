"""One budget for the unusable samples of all ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoselect.data.order import global_batch, rank_share
from autoselect.data.shards import ShardSet
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.shards import render_shards
from tests.launching import launch
from tests.training.small import write_small_vlm

SAMPLES, BATCH, DAMAGED_STEP = 32, 4, 2


def seen(folder: Path, what: str) -> list[list]:
    launch(2, "quarantine_worker.py", what, str(folder))
    return [json.loads((folder / f"{what}-{rank}.json").read_text()) for rank in range(2)]


def test_a_sample_counts_once_and_the_budget_ends_all_ranks(tmp_path: Path) -> None:
    first, second = seen(tmp_path, "lists")
    # One from before the restart; two found on each rank, one of them by both.
    assert first[:5] == second[:5] == [1, 0, 2, 4, 0]
    assert first[5] == second[5]
    assert "data.quarantine_budget=0.1 is exceeded: 5 of 40 samples" in first[5]
    assert (first[6], second[6]) == (3, 2)  # each rank lists what it found itself


@pytest.mark.slow
def test_ranks_that_each_stay_within_the_budget_exceed_it_together(tmp_path: Path) -> None:
    """They resume from the checkpoint after one of the two samples left out is repaired."""
    write_small_vlm(tmp_path / "vlm")
    data = ReferenceData(train=SAMPLES, val=1, test=1)
    render_shards(tmp_path / "damaged", data, workers=1)
    shards = ShardSet.open(str(tmp_path / "damaged" / "train-*.tar"))
    batch = global_batch(SAMPLES, 0, DAMAGED_STEP, BATCH)
    due = [int(rank_share(batch, 2, 1, rank, 2)[0, 0]) for rank in range(2)]
    for sample in due:
        flip(shards, sample)
    pointer = tmp_path / "run" / "checkpoints" / "latest"
    for message in seen(tmp_path, "trainer"):
        assert message and f"2 of {SAMPLES} samples are unusable" in message[0]
    assert pointer.read_text().strip() == f"step-{DAMAGED_STEP:08d}"
    flip(shards, due[1])
    assert seen(tmp_path, "trainer") == [[], []]
    assert pointer.read_text().strip() == "step-00000005"
    lists = [tmp_path / "run" / f"quarantine-{rank}.jsonl" for rank in range(2)]
    assert [len(path.read_text().splitlines()) for path in lists] == [1, 1]


def flip(shards: ShardSet, sample: int) -> None:
    """Damage a sample, or repair it."""
    shard, _, members = shards.locate(sample)
    with open(shards.shards[shard], "r+b") as stream:
        stream.seek(members[0].data + 5)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
