"""Samples that collation refuses are blanks with a fault, the same for every split and worker."""

import json
from pathlib import Path

import pytest

from autoselect.data.faults import BadSample, Fault
from autoselect.data.loader import collate_usable
from autoselect.data.quarantine import Quarantine, QuarantineBudgetError
from autoselect.data.shards import Sample
from tests.data.loaders import make_loader

REFUSED = {"000007", "000008", "000031"}
STEPS = 9


def picky(samples: list[Sample]) -> list[tuple[int, bool, int]]:
    """Return a micro-batch if it holds none of `REFUSED`."""
    for sample in samples:
        if sample.key in REFUSED and not sample.quarantined:
            fault = Fault("too_long", sample.shard, sample.key, sample.offset, "an essay")
            raise BadSample(fault)
    return [(s.sample_id, s.quarantined, len(s.pictures)) for s in samples]


def run(shards, listing: Path | None = None, **options) -> tuple[list, Quarantine]:
    quarantine = Quarantine(len(shards), 1.0, listing)
    loader = make_loader(shards, picky, seed=5, stop_step=STEPS, quarantine=quarantine, **options)
    return list(loader), quarantine


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", [(12, 1, 1), (3, 2, 2), (3, 1, 4), (1, 12, 1)])
def test_refused_samples_are_the_same_blanks_for_every_split(open_set, split, workers) -> None:
    micro_batch, accumulation, world_size = split
    whole, quarantine = run(open_set(), micro_batch=12)
    seen: list[list] = [[] for _ in range(STEPS)]
    faults = set()
    for rank in range(world_size):
        steps, own = run(
            open_set(),
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
            workers=workers if rank == 0 else 0,
        )
        faults |= set(own.faults)
        for step, micro_batches in enumerate(steps):
            seen[step] += [row for rows in micro_batches for row in rows]
    assert [sorted(rows) for rows in seen] == [sorted(rows) for (rows,) in whole]
    assert faults == set(quarantine.faults)
    blanks = {row[0] for (rows,) in whole for row in rows if row[1]}
    assert blanks == {int(key) for key in REFUSED}
    assert all(row[2] == (not row[1]) for (rows,) in whole for row in rows)


def test_a_refused_sample_is_listed_once_with_its_kind(open_set, tmp_path: Path) -> None:
    run(open_set(), tmp_path / "list.jsonl", micro_batch=12)
    lines = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == REFUSED and len(lines) == len(REFUSED)
    assert {(line["kind"], line["detail"]) for line in lines} == {("too_long", "an essay")}


def test_refused_samples_count_against_the_budget(open_set) -> None:
    with pytest.raises(QuarantineBudgetError, match="too_long: an essay"):
        list(make_loader(open_set(), picky, seed=5, micro_batch=50, stop_step=1))


def test_a_sample_that_comes_twice_is_refused_twice(open_set) -> None:
    shards = open_set()
    rows, faults = collate_usable(picky, [shards[7], shards[3], shards[7]])
    assert [row[:2] for row in rows] == [(7, True), (3, False), (7, True)]
    assert [fault.key for fault in faults] == ["000007"]


@pytest.mark.parametrize("error", [TypeError, ValueError])
@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_of_collation_surface(open_set, error, workers) -> None:
    def broken(samples):
        raise error("a mistake")

    with pytest.raises(error, match="a mistake"):
        list(make_loader(open_set(), broken, seed=5, micro_batch=4, stop_step=1, workers=workers))
