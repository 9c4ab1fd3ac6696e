"""Conversations in LLaVA form to training batches: text ids, answer labels, positions, pixels.

Two ways to read several rounds about one image. `conversation`: one sequence, each round sees the
ones before it. `independent`: each round sees the image and itself only, and its positions start
where the image ends, so that one image prefix serves all its questions; this is a block-diagonal
attention mask on the stock model.

Dimension letters: B rows, T text tokens, I images of the batch.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.data.faults import BadSample, Fault, FaultKind
from autoselect.data.record import (
    IMAGE_PLACEHOLDER,
    RecordError,
    check_conversation,
    check_placeholders,
)
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.text.dialogue import first_rounds
from autoselect.vlm.text.placeholders import ProcessedImages, process_images
from autoselect.vlm.text.rows import PADDING_SEGMENT, PREFIX_SEGMENT, Row, RowWriter
from autoselect.vlm.text.tokens import IGNORED_LABEL

logger = logging.getLogger(__name__)

MOST_IMAGES = 4096
MOST_ELONGATED = 400
"""Longest side over the shortest; processors that fix the shortest side would take gigabytes."""
IMAGE_ERRORS = (ValueError, ArithmeticError)
"""What image processors raise about a picture that they cannot take, such as a line of pixels."""
Rounds = Literal["independent", "conversation"]


class ShardSample(Protocol):
    """What the collator reads of a sample of the shards; the last two to name a refused one."""

    @property
    def key(self) -> str: ...

    @property
    def sample_id(self) -> int: ...

    @property
    def record(self) -> dict[str, Any]: ...

    @property
    def pictures(self) -> tuple[Image.Image, ...]: ...

    @property
    def shard(self) -> str: ...

    @property
    def offset(self) -> int: ...


@dataclass
class TrainBatch:
    """One micro-batch.

    Attributes:
        input_ids: text with all N placeholders of every image, padded on the right, [B, T].
        labels: the next token where it is part of an answer, else -100, [B, T].
        position_ids: [B, T].
        segments: round that a token belongs to, or PREFIX_SEGMENT or PADDING_SEGMENT, [B, T].
        pixels: arguments of the image encoder for I images, in order of appearance.
        tokens_per_image: visual tokens of each image, I numbers.
        image_ids: sample_id * MOST_IMAGES + place in its sample, int64, [I]; noise is keyed by it.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segments: Tensor
    pixels: dict[str, Tensor]
    tokens_per_image: list[int]
    image_ids: Tensor

    @property
    def num_answer_tokens(self) -> int:
        return int((self.labels != IGNORED_LABEL).sum())

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device) -> "TrainBatch":
        """The same batch on another device."""
        return TrainBatch(
            self.input_ids.to(device),
            self.labels.to(device),
            self.position_ids.to(device),
            self.segments.to(device),
            {name: value.to(device) for name, value in self.pixels.items()},
            self.tokens_per_image,
            self.image_ids.to(device),
        )


class Collator:
    """Turns shard samples into a `TrainBatch`. Holds no model, so that it travels to workers.

    A sample without an image teaches a selector nothing: no gradient from it reaches Scorer or
    Denoiser. Its row is a single token without an answer, so that the longest text of a mixed data
    set neither pads the rows beside it nor dilutes their loss.

    Args:
        vlm: whose processor is used.
        rounds: how several rounds of one sample are read.
        max_text_tokens: longest row, placeholders included; rounds that do not fit are left out.

    Attributes:
        dropped_rounds: rounds left out so far, in this process.

    Raises:
        ConfigError: the model cannot be trained on, or not this way.
    """

    def __init__(
        self, vlm: FrozenVLM, rounds: Rounds = "independent", max_text_tokens: int = 2048
    ) -> None:
        if vlm.family.convolutions and rounds == "independent":
            raise ConfigError(
                f"data.rounds=independent: convolutions of model={vlm.name} "
                f"({vlm.model.config.model_type}) would mix the rounds of a row; set "
                "data.rounds=conversation"
            )
        if vlm.family.untrained:
            raise ConfigError(
                f"model={vlm.name} ({vlm.model.config.model_type}) cannot be trained on: "
                f"{vlm.family.untrained}; choose another family of docs/backbones.md"
            )
        self.processor = vlm.processor
        self.num_tokens = vlm.num_tokens
        self.rounds = rounds
        self.max_text_tokens = max_text_tokens
        tokenizer = vlm.processor.tokenizer
        self.placeholder = vlm.placeholder
        mark = vlm.image_mark
        self.write = RowWriter(vlm, mark, max_text_tokens)
        self.reserved = _any_of(IMAGE_PLACEHOLDER, mark, self.placeholder, _video_token(vlm))
        self.pad_id = tokenizer.pad_token_id or 0
        self.dropped_rounds = 0
        self._next_report = 1

    def __call__(self, samples: Sequence[ShardSample]) -> TrainBatch:
        """The batch of some samples.

        Raises:
            BadSample: the first sample found that the model cannot be trained on. Whether one is
                refused does not depend on the others.
            ConfigError: the model's processor or chat template lacks what training needs.
        """
        for sample in samples:
            self._check(sample)
        rows, processed = self._rows(samples)
        ids = [
            sample.sample_id * MOST_IMAGES + place
            for sample, row in zip(samples, rows, strict=True)
            for place in range(row.num_images)
        ]
        return TrainBatch(
            input_ids=_padded([row.ids for row in rows], self.pad_id),
            labels=_padded([row.labels for row in rows], IGNORED_LABEL),
            position_ids=_padded([row.positions for row in rows], 0),
            segments=_padded([row.segments for row in rows], PADDING_SEGMENT),
            pixels=processed.pixels,
            tokens_per_image=processed.counts,
            image_ids=torch.tensor(ids, dtype=torch.long),
        )

    def _rows(self, samples: Sequence[ShardSample]) -> tuple[list[Row], ProcessedImages]:
        """Write the rows of a batch and process its images.

        Images of rounds that do not fit are out, and what is left is written again: an image may
        have other tokens where it is alone.
        """
        records = [sample.record for sample in samples]
        pictures = [sample.pictures for sample in samples]
        dropped = 0
        while True:
            processed = self._process(samples, pictures)
            known = zip(samples, records, processed.texts, strict=True)
            rows = [self._row(*one) for one in known]
            dropped += sum(row.dropped for row in rows)
            counts = [row.num_images for row in rows]
            if counts == [len(own) for own in pictures]:
                break
            records = [
                first_rounds(record, row.dropped) for record, row in zip(records, rows, strict=True)
            ]
            pictures = [own[:count] for own, count in zip(pictures, counts, strict=True)]
        self._report_dropped(dropped)
        return rows, processed

    def _check(self, sample: ShardSample) -> None:
        """Refuses lines in the place of images, and text that would be taken for images."""
        try:
            check_conversation(sample.record)
            check_placeholders(sample.record, len(sample.pictures))
        except RecordError as error:
            raise refusal(sample, error.kind, str(error)) from error
        for picture in sample.pictures:
            if max(picture.size) > MOST_ELONGATED * min(picture.size):
                raise refusal(
                    sample,
                    "unprocessable",
                    f"its image of {picture.width} x {picture.height} pixels is a line: one side "
                    f"is more than {MOST_ELONGATED} times the other; leave the sample out",
                )
        for number, turn in enumerate(sample.record["conversations"]):
            text = turn["value"]
            if turn["from"] == "human":
                text = text.replace(IMAGE_PLACEHOLDER, "\n")
            if found := self.reserved.search(text):
                raise refusal(
                    sample,
                    "placeholder_text",
                    f"turn {number} holds {found[0]!r}, which stands for visual tokens; reword it",
                )

    def _process(
        self, samples: Sequence[ShardSample], rows: Sequence[tuple[Image.Image, ...]]
    ) -> ProcessedImages:
        """`_pixels` of a batch; finds the sample whose images are refused."""
        try:
            return self._pixels(rows)
        except IMAGE_ERRORS as error:
            if isinstance(error, ConfigError):
                raise
            for sample, row in zip(samples, rows, strict=True):
                self._process_alone(sample, row)
            raise

    def _process_alone(self, sample: ShardSample, row: tuple[Image.Image, ...]) -> None:
        """Refuses a sample whose images are refused without others beside them."""
        try:
            self._pixels([row])
        except IMAGE_ERRORS as error:
            if isinstance(error, ConfigError):
                raise
            sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in row)
            raise refusal(
                sample,
                "unprocessable",
                f"{type(self.processor).__name__} refuses its images of {sizes} pixels: {error}",
            ) from error

    def _pixels(self, rows: Sequence[tuple[Image.Image, ...]]) -> ProcessedImages:
        """Pixels of a batch, and texts of its images."""
        if self.num_tokens is None:
            return process_images(self.processor, rows, self.placeholder)
        images = [picture for row in rows for picture in row]
        process = self.processor.image_processor
        pixels = process(images=images, return_tensors="pt") if images else {}
        texts = [[self.placeholder * self.num_tokens] * len(row) for row in rows]
        return ProcessedImages(dict(pixels), texts, [self.num_tokens] * len(images))

    def _row(self, sample: ShardSample, record: dict[str, Any], texts: list[str]) -> Row:
        """The row of a sample's record, or of its first rounds; with images it needs an answer."""
        if not texts:
            return self._blank()
        independent = self.rounds == "independent"
        write = self.write.independent if independent else self.write.conversation
        try:
            row = write(record, texts)
        except RecordError as error:
            raise refusal(sample, error.kind, str(error)) from error
        if row.has_answer:
            return row if row.num_images else self._blank(row.dropped)
        if not row.dropped:
            raise refusal(sample, "no_answer", "none of its rounds has an answer")
        visual = sum(text.count(self.placeholder) for text in texts)
        raise refusal(
            sample,
            "too_long",
            f"no answer fits data.max_text_tokens={self.max_text_tokens}, of which its images take "
            f"{visual}; raise the limit, shorten the text or use smaller images",
        )

    def _blank(self, dropped: int = 0) -> Row:
        """One token that predicts nothing; `dropped` rounds did not fit."""
        return Row([self.pad_id], [IGNORED_LABEL], [0], [0], num_images=0, dropped=dropped)

    def _report_dropped(self, rounds: int) -> None:
        """Logs how many rounds were left out, each time that there are ten times as many."""
        self.dropped_rounds += rounds
        if self.dropped_rounds < self._next_report:
            return
        while self.dropped_rounds >= self._next_report:
            self._next_report *= 10
        logger.warning(
            "%d rounds so far in this process did not fit data.max_text_tokens=%d and were left "
            "out; raise the limit to train on them",
            self.dropped_rounds,
            self.max_text_tokens,
        )


def refusal(sample: ShardSample, kind: FaultKind, detail: str) -> BadSample:
    """A sample that cannot be collated, as the fault that it is."""
    return BadSample(Fault(kind, sample.shard, sample.key, sample.offset, detail))


def _padded(rows: Sequence[list[int]], padding: int) -> Tensor:
    """Rows padded on the right, [B, T]."""
    longest = max(map(len, rows))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows], dtype=torch.long)


def _video_token(vlm: FrozenVLM) -> str | None:
    """What stands for a frame of a clip, where the model has clips."""
    config = vlm.model.config
    number = getattr(config, "video_token_id", getattr(config, "video_token_index", None))
    return None if number is None else vlm.processor.tokenizer.convert_ids_to_tokens(number)


def _any_of(*texts: str | None) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in dict.fromkeys(texts) if text))


def attention_mask(segments: Tensor, dtype: torch.dtype, images: Tensor | None = None) -> Tensor:
    """Additive attention mask `[B, 1, T, T]` of independent rounds behind a shared prefix.

    Args:
        segments: PREFIX_SEGMENT, PADDING_SEGMENT, else the round, [B, T].
        dtype: of the mask.
        images: number of the image that a token belongs to, -1 for text, [B, T]; given where the
            tokens of one image see each other.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    shared = (segments == PREFIX_SEGMENT)[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)
    seen = (causal & (same | shared) & (segments != PADDING_SEGMENT)[:, None, :]) | itself
    if images is not None:
        seen |= (images[:, :, None] == images[:, None, :]) & (images >= 0)[:, :, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
