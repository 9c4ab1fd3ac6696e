"""Rows of shards as unlabelled questions, taken from where the training has not been."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from autoselect.config import ConfigError
from autoselect.data.faults import BadSample
from autoselect.data.order import epoch_slice
from autoselect.data.shards import Sample, ShardSet
from autoselect.evaluation.samples import EvaluationSample, digest_of, parse_record

Refusal = Callable[[Sequence[Image.Image]], str | None]


@dataclass(frozen=True)
class TuningSamples:
    """Samples of a search.

    Attributes:
        samples: images and questions.
        rows: the same rows as they are stored.
        held_out: how many of them the training did not use, for its validation neither.
    """

    samples: tuple[EvaluationSample, ...]
    rows: tuple[Sample, ...]
    held_out: int

    @property
    def has_answers(self) -> bool:
        return any(
            str(accepted).strip()
            for sample in self.samples
            for own in sample.answers
            for accepted in own
        )


def tuning_samples(
    shards: ShardSet,
    training: Mapping[str, Any],
    images: int,
    questions: int,
    refusal: Refusal = lambda images: None,
) -> TuningSamples:
    """Return the first usable samples in the order of the training, behind the last one it used.

    If the training went through all rows, its oldest ones are taken. Rows of its validation are the
    last of the others. Rows that cannot be used are left out. Other shards than those of the
    training are new as a whole.

    Args:
        shards: shards of the training or others.
        training: metadata of the selector, with `data_digest`, `seed` and `samples`, the number of
            rows that the training used, and optionally `judged_by`, that of its validation.
        images: number of samples.
        questions: largest number of questions of each.
        refusal: what the model's processor says against the images of a row, None if it takes them.

    Raises:
        ConfigError: no row has an image and a question.
    """
    count = len(shards)
    trained = training.get("data_digest") == shards.digest
    used = min(count, training.get("samples") or count) if trained else 0
    judged_by = training.get("judged_by", 0) if trained else 0
    seed = training.get("seed", 0) if trained else 0
    order = [*epoch_slice(count, seed, 0, used, count), *epoch_slice(count, seed, 0, 0, used)]
    found: list[tuple[EvaluationSample, Sample]] = []
    held_out = 0
    for place, index in enumerate(order):
        if len(found) == images:
            break
        for pair in _usable(shards, int(index), questions, refusal):
            found.append(pair)
            held_out += place < count - used - judged_by
    if not found:
        raise ConfigError("shards: no row has an image and a question; give other shards")
    samples, rows = zip(*found, strict=True)
    return TuningSamples(samples, rows, held_out)


def _usable(
    shards: ShardSet, index: int, questions: int, refusal: Refusal
) -> Iterator[tuple[EvaluationSample, Sample]]:
    """Yield a row and its first questions as a sample, or nothing if the row cannot be used."""
    try:
        stored = shards[index]
        pictures = stored.pictures
        turns = {"conversations": stored.record.get("conversations")}  # labels are not read
        parsed = parse_record(turns, stored.key, needs_answers=False)
    except (BadSample, ConfigError):
        return
    if not pictures or refusal(pictures) is not None:
        return
    asked = parsed.questions[:questions]
    sample = EvaluationSample(
        f"{index}-{stored.key}",
        pictures,
        asked,
        parsed.answers[:questions],
        parsed.tasks[:questions],
        ((),) * len(asked),
        parsed.marked[:questions],
        digest_of(stored),
    )
    yield sample, stored
