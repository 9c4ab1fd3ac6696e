"""Read what is evaluated: images with independent questions, from evaluation shards."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar, overload

from PIL import Image
from tqdm import tqdm

from autoselect.config import ConfigError, GateSite
from autoselect.data.faults import BadSample
from autoselect.data.shards import Sample, ShardSet
from autoselect.data.turns import IMAGE_PLACEHOLDER
from autoselect.evaluation.identity import digest
from autoselect.evaluation.scores.scoring import AnsweredSample

Box = tuple[float, float, float, float]
Item = TypeVar("Item")
DEFAULT_TASK = "vqa"
CHECKED_TOGETHER = 256


class Parsed(NamedTuple):
    """What a record asks, by round; the fields are those of `EvaluationSample`."""

    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...]
    boxes: tuple[tuple[Box, ...], ...]
    marked: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationSample:
    """One or more images with questions, each asked on its own.

    Attributes:
        key: name of the sample in its shard.
        images: RGB, at least one; every question is about all of them.
        questions: one text per round.
        answers: accepted answers of each round; ten of them for VQA soft accuracy.
        tasks: name of each round's task.
        boxes: known regions of each round, (left, top, right, bottom) in pixels.
        marked: the questions with image placeholders; empty if their places are unknown.
        image_digest: digest of the stored images; empty if unknown.
    """

    key: str
    images: tuple[Image.Image, ...]
    questions: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...]
    boxes: tuple[tuple[Box, ...], ...]
    marked: tuple[str, ...] = ()
    image_digest: str = ""

    @property
    def image(self) -> Image.Image:
        """Return the image of a sample that has exactly one."""
        (image,) = self.images
        return image

    def asked(self, turn: int) -> str:
        """Return the text to ask; with several images it contains their placeholders."""
        return self.marked[turn] if len(self.images) > 1 and self.marked else self.questions[turn]


def names_of(samples: Sequence[EvaluationSample]) -> list[str]:
    """Return what errors call the images of some samples."""
    return [f"sample {sample.key!r}" for sample in samples]


def encode_samples(vlm: Any, samples: Sequence[EvaluationSample], site: GateSite) -> Any:
    """Return the visual tokens of samples of one image each, see `FrozenVLM.encode_images`."""
    return vlm.encode_images([sample.image for sample in samples], site, names_of(samples))


def parse_record(record: dict[str, Any], key: str, needs_answers: bool = True) -> Parsed:
    """Return what a LLaVA record asks.

    Without `needs_answers` the last question may lack an answer, and answers may be empty.

    Raises:
        ConfigError: questions and answers differ in number, an answer is empty, or `tasks`, `boxes`
            or `answers` do not have one entry per round, or one of another form.
    """
    turns = record.get("conversations") or []
    asked = [t["value"] for t in turns if t.get("from") == "human"]
    given = [t["value"] for t in turns if t.get("from") == "gpt"]
    if not needs_answers:
        given += [""] * (len(asked) - len(given))
    if not asked or len(asked) != len(given):
        raise ConfigError(
            f"conversations of sample {key!r} have {len(asked)} questions, {len(given)} answers; "
            "give every question its gpt turn, or, in `autoselect eval`, measure agreement with "
            "the full model (--reference model)"
        )
    questions = tuple(q.replace(IMAGE_PLACEHOLDER, "").strip() for q in asked)
    own = partial(_per_round, record, key, len(questions))
    answers = own("answers") or [[answer] for answer in given]
    tasks = own("tasks") or [DEFAULT_TASK] * len(questions)
    boxes = own("boxes") or [[] for _ in questions]
    if not all(map(_are_answers, answers)):
        raise ConfigError(
            f"answers of sample {key!r} must be a list of accepted answers for every round, text "
            f'or numbers, are {answers!r}; write [["yes"], ["a cat", "cat"]]'
        )
    empty = any(not accepted or not str(accepted[0]).strip() for accepted in answers)
    if needs_answers and empty:
        raise ConfigError(
            f"answers of sample {key!r} are empty in a round; give at least one answer per round, "
            "or, in `autoselect eval`, measure agreement with the full model (--reference model)"
        )
    if not all(isinstance(task, str) and task.strip() for task in tasks):
        raise ConfigError(
            f"tasks of sample {key!r} must be the name of a task for every round, are {tasks!r}; "
            'write ["counting", "reading"]'
        )
    if not all(map(_are_boxes, boxes)):
        raise ConfigError(
            f"boxes of sample {key!r} must be (left, top, right, bottom) in pixels, a list for "
            f"every round, are {boxes!r}; write [[[10, 20, 60, 80]], []]"
        )
    return Parsed(
        questions,
        tuple(tuple(str(a) for a in accepted) for accepted in answers),
        tuple(" ".join(task.split()) for task in tasks),
        tuple(tuple((b[0], b[1], b[2], b[3]) for b in regions) for regions in boxes),
        tuple(asked),
    )


def _per_round(record: Mapping[str, Any], key: str, rounds: int, field: str) -> list[Any]:
    """Return the entries of a field, one per round; empty if the record does not have it."""
    values = record.get(field)
    if values is None or values == []:
        return []
    if not isinstance(values, list):
        raise ConfigError(
            f"{field} of sample {key!r} must be a list with one entry per round, not {values!r}"
        )
    if len(values) != rounds:
        raise ConfigError(
            f"{field} of sample {key!r} has {len(values)} entries for {rounds} rounds; give one "
            "entry per round"
        )
    return values


def _are_answers(accepted: Any) -> bool:
    return isinstance(accepted, list) and all(
        isinstance(answer, str | int | float) and not isinstance(answer, bool)
        for answer in accepted
    )


def _are_boxes(regions: Any) -> bool:
    """Return True for a list of boxes: four finite numbers each, and not fractions of a picture."""
    return isinstance(regions, list) and all(
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(n, int | float) and math.isfinite(n) for n in box)
        and (max(box) > 1 or not any(box))
        for box in regions
    )


def digest_of(sample: Sample) -> str:
    """Return a digest of the encoded images of a stored sample, 16 hexadecimal digits."""
    parts = [hashlib.sha256(image).hexdigest() for image in sample.images]
    return digest(parts)


def stored(shards: ShardSet, index: int) -> Sample:
    """Return a stored sample, not yet decoded.

    Raises:
        ConfigError: the sample is damaged.
    """
    try:
        return shards[index]
    except BadSample as error:
        raise ConfigError(f"shards: {error}; write the shard again") from error


def decoded(sample: Sample) -> tuple[Image.Image, ...]:
    """Return the decoded images of a stored sample.

    Raises:
        ConfigError: an image cannot be decoded.
    """
    try:
        return sample.pictures
    except BadSample as error:
        raise ConfigError(f"shards: {error}; replace the image") from error


def check_images(read: Callable[[int], Sample], count: int) -> None:
    """Decode the images of the samples `read(0)` to `read(count - 1)`, and keep none.

    Raises:
        ConfigError: an image cannot be decoded, or `read` raised it.
    """
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=count, desc="checking images", disable=None) as bar,
    ):
        for start in range(0, count, CHECKED_TOGETHER):
            some = [read(index) for index in range(start, min(start + CHECKED_TOGETHER, count))]
            bar.update(len(list(pool.map(decoded, some))))


class LazySequence(Sequence[Item]):
    """A sequence of `length` items; each is read when it is requested, and none is kept."""

    def __init__(self, read: Callable[[int], Item], length: int) -> None:
        self._read, self._length = read, length

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} is not in 0..{self._length - 1}")
        return self._read(index)


class EvaluationSet(LazySequence[EvaluationSample]):
    """Evaluation shards as a sequence; images are decoded when a sample is requested.

    Args:
        max_images: use only the first samples; None for all.
        needs_answers: refuse samples without answers.

    Attributes:
        digest: identifies the shards and the number of samples used.
        one_image_each: no sample read so far has several images.
        has_boxes: every round read so far has boxes.
        image_digests: digest of the images of every sample read so far, by its number.
    """

    def __init__(self, shards: ShardSet, max_images: int | None, needs_answers: bool) -> None:
        length = len(shards) if max_images is None else min(max_images, len(shards))
        super().__init__(self._sample, length)
        self._shards, self._needs_answers = shards, needs_answers
        self.digest = f"{shards.digest}:{length}"
        self.one_image_each = True
        self.has_boxes = True
        self.image_digests: dict[int, str] = {}

    @classmethod
    def open(
        cls, pattern: str, max_images: int | None = None, needs_answers: bool = True
    ) -> "EvaluationSet":
        """Open the shards that match a glob and check every record and image.

        Raises:
            ConfigError: no shard matches, a sample is damaged or has no image, an image cannot be
                decoded, or `parse_record` refuses a record.
        """
        shards = ShardSet.open(pattern)
        if shards.faults:
            raise ConfigError(
                f"shards={pattern}: {len(shards.faults)} samples cannot be used, the first: "
                f"{shards.faults[0]}; write the shard again, because an evaluation skips no sample"
            )
        samples = cls(shards, max_images, needs_answers)
        check_images(samples.read, len(samples))
        return samples

    def read(self, index: int) -> Sample:
        """Return a stored sample after checking it.

        Raises:
            ConfigError: the sample is damaged or cannot be evaluated.
        """
        sample = stored(self._shards, index)
        self.has_boxes &= all(self._parsed(sample).boxes)
        if not sample.images:
            raise ConfigError(
                f"image of sample {sample.key!r} is missing; selection needs an image, so "
                "remove the sample"
            )
        if len(sample.images) > 1:
            self.one_image_each = False
        if index not in self.image_digests:
            self.image_digests[index] = digest_of(sample)
        return sample

    def _parsed(self, sample: Sample) -> Parsed:
        return parse_record(sample.record, sample.key, self._needs_answers)

    def answered(self) -> list[AnsweredSample]:
        """Return what scoring needs of every sample, without decoding images."""
        found = []
        for index in range(len(self)):
            sample = self.read(index)
            own = self._parsed(sample)
            accepted = [list(answers) for answers in own.answers]
            asked = (list(own.questions), accepted, list(own.tasks))
            found.append(AnsweredSample(sample.key, *asked, self.image_digests[index]))
        return found

    def _sample(self, index: int) -> EvaluationSample:
        sample = self.read(index)
        parsed = self._parsed(sample)
        return EvaluationSample(sample.key, decoded(sample), *parsed, self.image_digests[index])
