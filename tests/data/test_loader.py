"""Steps hold the same samples for every split, number of workers and starting step."""

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.data.loader import death_of_worker
from autoselect.data.order import global_batch
from autoselect.data.shards import Sample, ShardSet, ShardWriter
from tests.data.loaders import make_loader
from tests.data.shard_samples import make_image, make_record, write_shards


def ids(samples: list[Sample]) -> list[int]:
    return [sample.sample_id for sample in samples]


def run(shards, steps: int, **options) -> list:
    return list(make_loader(shards, ids, seed=5, stop_step=steps, **options))


def test_steps_follow_the_global_order(open_set) -> None:
    shards = open_set()
    steps = run(shards, 9, micro_batch=4, accumulation=3)
    flat = [[one for micro in step for one in micro] for step in steps]
    assert flat == [global_batch(50, 5, step, 12).tolist() for step in range(9)]


def refuse(samples: list[Sample]) -> None:
    raise ConfigError("data.rounds=wrong; set another")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_setting_that_collate_refuses_is_named_without_a_traceback(open_set, workers) -> None:
    with pytest.raises(ConfigError, match=r"^data\.rounds=wrong; set another$"):
        next(iter(make_loader(open_set(), refuse, 5, 4, workers=workers)))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("lost", ["shard-000001.tar", "shard-000001.tar.index.jsonl"])
def test_a_file_that_is_lost_meanwhile_is_named_without_a_traceback(
    open_set, shard_folder, lost, workers
) -> None:
    loader = make_loader(open_set(), ids, 5, 4, workers=workers, group_by_length=True)
    (shard_folder / lost).unlink()
    name = "index" if lost.endswith(".jsonl") else "shard"
    message = rf"^{name}=\S*{lost} cannot be read any more: "
    with pytest.raises(ConfigError, match=message) as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


def test_a_worker_that_is_killed_is_named(open_set) -> None:
    """The error is let go at once: torch raises again while the loader's iterator is alive."""
    loader, told = make_loader(open_set(), ids, 5, 4, workers=1), ""
    try:
        for _ in loader:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
            time.sleep(60)
    except RuntimeError as error:
        told = death_of_worker(error)
    gc.collect()
    # torch says either, as the signal or the next batch comes first.
    end = r"(pid \d+\) is killed by signal: Killed|pid\(s\) \d+\) exited unexpectedly)"
    assert re.match(rf"DataLoader worker \({end}\. Usually the host ran out", told), told
    assert death_of_worker(RuntimeError("CUDA out of memory")) == ""


def test_every_sample_comes_once_per_epoch(open_set) -> None:
    steps = run(open_set(), 25, micro_batch=6)
    flat = [one for step in steps for micro in step for one in micro]
    for epoch in range(3):
        assert sorted(flat[epoch * 50 : epoch * 50 + 50]) == list(range(50))


@pytest.mark.parametrize("split", [(12, 1, 1), (3, 2, 2), (3, 1, 4), (1, 12, 1)])
def test_ranks_share_the_same_global_batches(open_set, split) -> None:
    micro_batch, accumulation, world_size = split
    ranks = [
        run(
            open_set(),
            6,
            micro_batch=micro_batch,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for step in range(6):
        flat = [
            one
            for turn in range(accumulation)
            for rank in range(world_size)
            for one in ranks[rank][step][turn]
        ]
        assert flat == global_batch(50, 5, step, 12).tolist()


def mixed_shards(folder: Path) -> ShardSet:
    """Write samples with 0 to 2 images and questions of many lengths."""
    with ShardWriter(folder, samples_per_shard=20) as writer:
        for number in range(50):
            images = [make_image(number)] * (number % 3)
            record = make_record(number, len(images))
            record["conversations"][1]["value"] = "word " * (number * 37 % 50)
            writer.write(f"{number:06d}", record, images)
    return ShardSet.open(str(folder))


@pytest.mark.parametrize("split", [(12, 1, 1), (3, 2, 2), (3, 1, 4), (2, 3, 2)])
def test_groups_by_length_hold_the_same_samples_whatever_the_split(tmp_path, split) -> None:
    micro_batch, accumulation, world_size = split
    shards = mixed_shards(tmp_path)

    def rank_steps(rank: int, **options) -> list:
        plan = {"accumulation": accumulation, "rank": rank, "world_size": world_size, **options}
        return run(shards, 6, micro_batch=micro_batch, group_by_length=True, **plan)

    ranks = [rank_steps(rank) for rank in range(world_size)]
    for step in range(6):
        turns = zip(*(own[step] for own in ranks), strict=True)
        flat = [one for turn in turns for micro in turn for one in micro]
        assert sorted(flat) == sorted(global_batch(50, 5, step, 12).tolist())
        read = [shards[one] for one in flat]
        lengths = [(len(one.images), len(one.record["conversations"][1]["value"])) for one in read]
        assert lengths == sorted(lengths), "the first micro-batches hold the shortest samples"
    assert rank_steps(0, start_step=4) == ranks[0][4:], "a resumed run goes on alike"
    assert rank_steps(0, workers=1) == ranks[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(open_set, workers: int) -> None:
    expected = run(open_set(), 11, micro_batch=4, accumulation=2)
    assert run(open_set(), 11, micro_batch=4, accumulation=2, workers=workers) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_where_it_was(open_set, workers: int) -> None:
    whole = run(open_set(), 30, micro_batch=4)
    assert run(open_set(), 30, micro_batch=4, start_step=17, workers=workers) == whole[17:]


def test_the_step_counts_what_was_handed_out(open_set) -> None:
    loader = make_loader(open_set(), ids, seed=5, micro_batch=5, workers=1)
    steps = iter(loader)
    for _ in range(3):
        next(steps)
    assert loader.step == 3
    assert loader.epoch == pytest.approx(0.3)
    assert next(iter(loader)) == make_loader(open_set(), ids, 5, 5).sample_ids(3)


def answers(samples: list[Sample]) -> list[tuple]:
    return [(s.key, s.record["conversations"], s.pictures[0].getpixel((0, 0))) for s in samples]


def test_images_and_answers_stay_together(open_set) -> None:
    shards = open_set()
    for (batch,) in make_loader(shards, answers, seed=1, micro_batch=10, stop_step=5):
        for key, conversations, pixel in batch:
            number = int(key)
            assert conversations == make_record(number)["conversations"]
            expected = (number % 16 * 16, number // 16 % 16 * 16, 128)
            assert all(abs(got - want) <= 3 for got, want in zip(pixel, expected, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"micro_batch": 0},
        {"accumulation": 0},
        {"world_size": 0},
        {"rank": 2, "world_size": 2},
        {"start_step": -1},
        {"workers": -1},
    ],
)
def test_sizes_out_of_range_are_refused(open_set, wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_loader(open_set(), ids, seed=0, **({"micro_batch": 1} | wrong))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_do_not_reach_the_workers(open_set, number: signal.Signals) -> None:
    expected = run(open_set(), 12, micro_batch=4)
    earlier = multiprocessing.active_children()  # of a loader that is still ending
    steps = iter(make_loader(open_set(), ids, seed=5, micro_batch=4, stop_step=12, workers=2))
    seen = [next(steps)]
    workers = [child for child in multiprocessing.active_children() if child not in earlier]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, number)
    assert seen + list(steps) == expected


def test_a_killed_worker_ends_the_run(open_set) -> None:
    steps = iter(make_loader(open_set(), ids, seed=5, micro_batch=4, workers=2))
    next(steps)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(steps)


LEAVE_EARLY = """
import multiprocessing, sys
from autoselect.data.loader import BatchPlan, Loader
from autoselect.data.shards import ShardSet

steps = iter(Loader(ShardSet.open(sys.argv[1]), len, 0, BatchPlan(4), 2))
next(steps)
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
{ending}
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [("sys.exit(3)", 3), ("raise ValueError", 1), ("import os; os.kill(os.getpid(), 9)", -9)],
)
def test_workers_end_with_the_training_process(shard_folder: Path, ending: str, code: int) -> None:
    script = LEAVE_EARLY.format(ending=ending)
    done = subprocess.run(
        [sys.executable, "-c", script, str(shard_folder)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived the training process"
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(open_set, workers: int) -> None:
    before = torch.get_rng_state()
    run(open_set(), 3, micro_batch=4, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_resuming_at_a_million_samples_reads_only_what_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand shards of a thousand samples, which are links to one."""
    folder = write_shards(tmp_path / "one", samples=1000, per_shard=1000)
    for number in range(1, 1000):
        for suffix in (".tar", ".tar.index.jsonl"):
            os.link(folder / f"shard-000000{suffix}", folder / f"shard-{number:06d}{suffix}")
    shards = ShardSet.open(str(folder))
    assert len(shards) == 1_000_000
    reads: list[tuple[str, int]] = []
    tables: list[int] = []
    read, load = shards._reader.read, shards._load_table
    monkeypatch.setattr(
        shards._reader, "read", lambda path, *at: (reads.append((path, at[0])), read(path, *at))[1]
    )
    monkeypatch.setattr(shards, "_table", lambda number: (tables.append(number), load(number))[1])
    loader = make_loader(shards, ids, seed=5, micro_batch=8, start_step=125_000 + 31)
    (batch,) = next(iter(loader))
    assert batch == global_batch(1_000_000, 5, 125_031, 8).tolist()
    assert reads == [(shards.shards[one // 1000], shards.locate(one)[2][0].start) for one in batch]
    assert tables[:8] == [one // 1000 for one in batch]
