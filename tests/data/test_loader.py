"""Steps hold the same samples for every split, number of workers and starting step."""

import pytest
from shard_samples import make_record

from autoselect.config import ConfigError
from autoselect.data.loader import Loader
from autoselect.data.order import global_batch
from autoselect.data.shards import Sample


def ids(samples: list[Sample]) -> list[int]:
    return [sample.sample_id for sample in samples]


def run(shards, steps: int, **options) -> list:
    return list(Loader(shards, ids, seed=5, stop_step=steps, **options))


def test_steps_follow_the_global_order(open_set) -> None:
    shards = open_set()
    steps = run(shards, 9, micro_batch=4, accumulation=3)
    flat = [[one for micro in step for one in micro] for step in steps]
    assert flat == [global_batch(50, 5, step, 12).tolist() for step in range(9)]


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


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(open_set, workers: int) -> None:
    expected = run(open_set(), 11, micro_batch=4, accumulation=2)
    assert run(open_set(), 11, micro_batch=4, accumulation=2, workers=workers) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_goes_on_where_it_was(open_set, workers: int) -> None:
    whole = run(open_set(), 30, micro_batch=4)
    assert run(open_set(), 30, micro_batch=4, start_step=17, workers=workers) == whole[17:]


def test_the_step_counts_what_was_handed_out(open_set) -> None:
    loader = Loader(open_set(), ids, seed=5, micro_batch=5, workers=1)
    steps = iter(loader)
    for _ in range(3):
        next(steps)
    assert loader.step == 3
    assert loader.epoch == pytest.approx(0.3)
    assert next(iter(loader)) == Loader(open_set(), ids, 5, 5).sample_ids(3)


def answers(samples: list[Sample]) -> list[tuple]:
    return [(s.key, s.record["conversations"], s.pictures[0].getpixel((0, 0))) for s in samples]


def test_images_and_answers_stay_together(open_set) -> None:
    shards = open_set()
    for (batch,) in Loader(shards, answers, seed=1, micro_batch=10, stop_step=5):
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
        Loader(open_set(), ids, seed=0, **({"micro_batch": 1} | wrong))
