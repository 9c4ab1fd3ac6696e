"""Build training batches from LLaVA-style samples: token ids, labels, positions and pixels.

Several rounds about one image can be read in two ways. `conversation` is one sequence in which each
round sees the earlier ones. In `independent` each round sees only the image and itself, and its
positions start after the image, so one image prefix serves all questions; the stock model gets a
block-diagonal attention mask for that.

Dimension letters: B rows, T text tokens, I images of the batch.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.data.faults import RecordError
from autoselect.data.record import lacks_answer
from autoselect.data.shards import Sample
from autoselect.data.turns import IMAGE_PLACEHOLDER
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.dialogue import first_rounds
from autoselect.vlm.batches.rows import PADDING_SEGMENT, PREFIX_SEGMENT, RowWriter, TextRow
from autoselect.vlm.batches.samples import any_of, check_sample, refusal
from autoselect.vlm.families import placeholder_id, training_fault
from autoselect.vlm.text.pictures import IMAGE_ERRORS, refusal_of
from autoselect.vlm.text.placeholders import ProcessedImages, process_images
from autoselect.vlm.text.tokens import IGNORED_LABEL

logger = logging.getLogger(__name__)

MOST_IMAGES = 4096
Rounds = Literal["independent", "conversation"]


@dataclass
class TrainBatch:
    """One micro-batch.

    Attributes:
        input_ids: text with all N placeholders of every image, padded on the right, [B, T].
        labels: the next token if it is part of an answer, else -100, [B, T].
        position_ids: [B, T].
        segments: round that a token belongs to, or PREFIX_SEGMENT or PADDING_SEGMENT, [B, T].
        pixels: arguments of the image encoder for I images, in order of appearance: tensors, and
            lists of some families.
        tokens_per_image: visual tokens of each image, I numbers.
        image_ids: sample_id * MOST_IMAGES + place in its sample, int64, [I]; noise is keyed by it.
        host: the same batch on the CPU; None if this one is there. Counts and places are read from
            it, so that nothing waits for the device.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segments: Tensor
    pixels: dict[str, Any]
    tokens_per_image: list[int]
    image_ids: Tensor
    host: "TrainBatch | None" = None

    @property
    def on_host(self) -> "TrainBatch":
        return self if self.host is None else self.host

    @property
    def num_answer_tokens(self) -> int:
        return int((self.on_host.labels.numpy() != IGNORED_LABEL).sum())

    @property
    def has_rounds(self) -> bool:
        """Return True if rows have several rounds that must not see each other."""
        return bool((self.on_host.segments.numpy() > 0).any())

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device) -> "TrainBatch":
        """Copy the batch to a device without waiting for it."""

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            pinned = device.type == "cuda" and value.device.type == "cpu"
            return (value.pin_memory() if pinned else value).to(device, non_blocking=True)

        return TrainBatch(
            moved(self.input_ids),
            moved(self.labels),
            moved(self.position_ids),
            moved(self.segments),
            {name: moved(value) for name, value in self.pixels.items()},
            self.tokens_per_image,
            moved(self.image_ids),
            self.on_host,
        )


class Collator:
    """Turn shard samples into a `TrainBatch`. It holds no model, so it can be sent to workers.

    A sample without an image gives Scorer and Denoiser no gradient. Its row is a single token
    without an answer, so that it neither pads other rows nor dilutes their loss.

    Args:
        rounds: how several rounds of one sample are read.
        max_text_tokens: longest row in tokens, placeholders included; later rounds are dropped.

    Attributes:
        dropped_rounds: number of rounds dropped so far in this process.

    Raises:
        ConfigError: the model cannot be trained on, or not with this setting of `rounds`.
    """

    def __init__(
        self, vlm: FrozenVLM, rounds: Rounds = "independent", max_text_tokens: int = 2048
    ) -> None:
        if fault := training_fault(vlm.model.config, rounds):
            found, fix = fault
            kind = vlm.model.config.model_type
            raise ConfigError(f"model={vlm.name} ({kind}) {found}; {fix}")
        self.processor = vlm.processor
        self.num_tokens = vlm.num_tokens
        self.rounds = rounds
        self.max_text_tokens = max_text_tokens
        tokenizer = vlm.processor.tokenizer
        self.placeholder = vlm.placeholder
        mark = vlm.image_mark
        self.write = RowWriter(vlm, mark, max_text_tokens)
        self.reserved = any_of(IMAGE_PLACEHOLDER, mark, self.placeholder, _video_token(vlm))
        self.pad_id = tokenizer.pad_token_id or 0
        self.dropped_rounds = 0
        self._next_report = 1

    def __call__(self, samples: Sequence[Sample]) -> TrainBatch:
        """Build the batch of some samples.

        Raises:
            BadSample: a sample cannot be used for training. This does not depend on the other
                samples in the batch.
            ConfigError: the processor or the chat template of the model does not allow training.
        """
        for sample in samples:
            check_sample(sample, self.reserved)
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

    def _rows(self, samples: Sequence[Sample]) -> tuple[list[TextRow], ProcessedImages]:
        """Write the rows of a batch and process its images.

        If dropped rounds remove images, the batch is processed again, because the tokens of an
        image may depend on the other images.
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

    def _process(
        self, samples: Sequence[Sample], rows: Sequence[tuple[Image.Image, ...]]
    ) -> ProcessedImages:
        """Process the images of a batch; if that fails, find the sample that is the cause."""
        try:
            return self._pixels(rows)
        except ConfigError:
            raise
        except IMAGE_ERRORS as error:
            for sample, row in zip(samples, rows, strict=True):
                said = refusal_of(self.processor, lambda own: self._pixels([own]), row)
                if said is not None:
                    raise refusal(sample, "unprocessable", said) from error
            raise

    def _pixels(self, rows: Sequence[tuple[Image.Image, ...]]) -> ProcessedImages:
        if self.num_tokens is None:
            return process_images(self.processor, rows, self.placeholder)
        images = [picture for row in rows for picture in row]
        process = self.processor.image_processor
        pixels = process(images=images, return_tensors="pt") if images else {}
        texts = [[self.placeholder * self.num_tokens] * len(row) for row in rows]
        return ProcessedImages(dict(pixels), texts, [self.num_tokens] * len(images))

    def _row(self, sample: Sample, record: dict[str, Any], texts: list[str]) -> TextRow:
        """Build the row of a record; raise BadSample if it has images but no answer."""
        if not texts:
            return self._blank()
        if lacks_answer(record["conversations"]):
            raise refusal(sample, "no_answer", "none of its rounds has an answer")
        independent = self.rounds == "independent"
        write = self.write.independent if independent else self.write.conversation
        try:
            row = write(record, texts)
        except RecordError as error:
            raise refusal(sample, error.kind, str(error)) from error
        if row.has_answer:
            return row if row.num_images else self._blank(row.dropped)
        visual = sum(text.count(self.placeholder) for text in texts)
        raise refusal(
            sample,
            "too_long",
            f"no answer fits data.max_text_tokens={self.max_text_tokens}, because its images take "
            f"{visual}; raise the limit, shorten the text or use smaller images",
        )

    def _blank(self, dropped: int = 0) -> TextRow:
        return TextRow([self.pad_id], [IGNORED_LABEL], [0], [0], num_images=0, dropped=dropped)

    def _report_dropped(self, rounds: int) -> None:
        """Count dropped rounds, and log the total whenever it grows tenfold."""
        self.dropped_rounds += rounds
        if self.dropped_rounds < self._next_report:
            return
        while self.dropped_rounds >= self._next_report:
            self._next_report *= 10
        logger.warning(
            "%d rounds so far in this process did not fit data.max_text_tokens=%d and were "
            "dropped; raise the limit to train on them",
            self.dropped_rounds,
            self.max_text_tokens,
        )


def _padded(rows: Sequence[list[int]], padding: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [padding] * (longest - len(row)) for row in rows], dtype=torch.long)


def _video_token(vlm: FrozenVLM) -> str | None:
    number = placeholder_id(vlm.model.config, "video")
    return None if number is None else vlm.processor.tokenizer.convert_ids_to_tokens(number)


def attention_mask(segments: Tensor, dtype: torch.dtype, images: Tensor | None = None) -> Tensor:
    """Return an additive mask [B, 1, T, T] for independent rounds after a shared prefix.

    Args:
        segments: PREFIX_SEGMENT, PADDING_SEGMENT, else the round, [B, T].
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
