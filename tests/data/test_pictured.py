"""Before a run begins it is known which samples and steps have pictures."""

import logging

import numpy as np
import pytest

from autoselect.config import ConfigError
from autoselect.data.order import global_batch
from autoselect.data.pictured import pictured, report_pictures, steps_without_pictures
from autoselect.data.shards import ShardSet, ShardWriter
from tests.data.shard_samples import make_image, make_record


def shards_with(folder, pictures: list[int]) -> ShardSet:
    """Write samples with these numbers of pictures, seven per shard."""
    with ShardWriter(folder, samples_per_shard=7) as writer:
        for number, count in enumerate(pictures):
            images = [make_image(number + part) for part in range(count)]
            writer.write(f"{number:03d}", make_record(number, count), images)
    return ShardSet.open(str(folder))


def test_samples_with_pictures_are_known_from_the_index(tmp_path):
    counts = [0, 1, 2, 0, 1] * 4
    shards = shards_with(tmp_path, counts)
    assert pictured(shards).tolist() == [count > 0 for count in counts]


def test_steps_without_pictures_are_those_of_the_order():
    has_picture = np.zeros(50, dtype=bool)
    has_picture[[3, 30]] = True
    for seed, size in ((0, 4), (1, 8)):
        empty = [
            step
            for step in range(20)
            if not has_picture[global_batch(len(has_picture), seed, step, size)].any()
        ]
        assert empty and steps_without_pictures(has_picture, seed, size, 20) == empty


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([1] * 9, []),
        ([1] * 8 + [0], ["8 of 9 samples have a picture"]),
        (
            [1] + [0] * 8,
            ["1 of 9 samples have a picture", "of the first 9 steps will train nothing"],
        ),
    ],
)
def test_what_trains_nothing_is_said(tmp_path, caplog, counts, said):
    with caplog.at_level(logging.WARNING):
        report_pictures(shards_with(tmp_path, counts), seed=0, batch_size=2, steps=1000)
    assert len(caplog.messages) == len(said)
    assert all(words in message for words, message in zip(said, caplog.messages, strict=True))


def test_pictures_without_an_answer_are_said(tmp_path, caplog):
    with ShardWriter(tmp_path) as writer:
        for number, turns in enumerate((1, 2, 1)):
            record = {"conversations": make_record(number)["conversations"][:turns]}
            writer.write(f"{number}", record, [make_image(number)])
    with caplog.at_level(logging.WARNING):
        report_pictures(ShardSet.open(str(tmp_path)), seed=0, batch_size=1, steps=3)
    assert [message[:49] for message in caplog.messages] == [
        "2 samples have a picture but no answer; each that"
    ]


def test_data_without_any_picture_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="none of 3 samples has a picture"):
        report_pictures(shards_with(tmp_path, [0, 0, 0]), seed=0, batch_size=2, steps=10)
