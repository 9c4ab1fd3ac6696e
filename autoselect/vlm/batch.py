"""Conversations in LLaVA form to training batches: text ids, answer labels, positions, pixels.

Two ways to read several rounds about one image. `conversation`: one sequence, each round sees the
ones before it. `independent`: each round sees the image and itself only, and its positions start
where the image ends, so that one image prefix serves all its questions; this is a block-diagonal
attention mask on the stock model.

Dimension letters: B rows, T text tokens, I images of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.vlm.backbone import FrozenVLM, chat
from autoselect.vlm.placeholders import ProcessedImages, fill_marks, image_mark, process_images

IGNORED_LABEL = -100
IMAGE_MARK = "<image>"
MOST_IMAGES = 4096
Rounds = Literal["independent", "conversation"]
Round = tuple[str, str | None]


class ShardSample(Protocol):
    """What the collator reads of a sample of the shards."""

    @property
    def key(self) -> str: ...

    @property
    def sample_id(self) -> int: ...

    @property
    def record(self) -> dict[str, Any]: ...

    @property
    def pictures(self) -> tuple[Image.Image, ...]: ...


@dataclass
class TrainBatch:
    """One micro-batch.

    Attributes:
        input_ids: text with all N placeholders of every image, padded on the right, [B, T].
        labels: the next token where it is part of an answer, else -100, [B, T].
        position_ids: [B, T].
        segments: round that a token belongs to: -1 prefix, -2 padding, [B, T].
        pixels: of the image processor, for I images, in order of appearance.
        image_ids: sample_id * MOST_IMAGES + place in its sample, int64, [I]; noise is keyed by it.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segments: Tensor
    pixels: dict[str, Tensor]
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
            self.image_ids.to(device),
        )


class Collator:
    """Turns shard samples into a `TrainBatch`. Holds no model, so that it travels to workers.

    Args:
        vlm: whose processor is used.
        rounds: how several rounds of one sample are read.
        max_text_tokens: longest row, placeholders included; later rounds are cut off.
    """

    def __init__(
        self, vlm: FrozenVLM, rounds: Rounds = "independent", max_text_tokens: int = 2048
    ) -> None:
        self.processor = vlm.processor
        self.model_name = vlm.name
        self.num_tokens = vlm.num_tokens
        self.rounds = rounds
        self.max_text_tokens = max_text_tokens
        tokenizer = vlm.processor.tokenizer
        self.placeholder = tokenizer.convert_ids_to_tokens(vlm.image_token_id)
        self.mark = image_mark(vlm.processor, self.placeholder)
        self.pad_id = tokenizer.pad_token_id or 0
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

    def __call__(self, samples: Sequence[ShardSample]) -> TrainBatch:
        processed = self._process([sample.pictures for sample in samples])
        pairs = zip(samples, processed.texts, strict=True)
        rows = [self._row(sample, texts) for sample, texts in pairs]
        longest = max(len(ids) for ids, _, _, _ in rows)

        def padded(column: int, padding: int) -> Tensor:
            lists = [row[column] + [padding] * (longest - len(row[column])) for row in rows]
            return torch.tensor(lists, dtype=torch.long)

        ids = [
            sample.sample_id * MOST_IMAGES + place
            for sample in samples
            for place in range(len(sample.pictures))
        ]
        return TrainBatch(
            input_ids=padded(0, self.pad_id),
            labels=padded(1, IGNORED_LABEL),
            position_ids=padded(2, 0),
            segments=padded(3, -2),
            pixels=processed.pixels,
            image_ids=torch.tensor(ids, dtype=torch.long),
        )

    def _process(self, rows: list[tuple[Image.Image, ...]]) -> ProcessedImages:
        """Pixels of a batch, and texts of images whose number of tokens varies."""
        if self.num_tokens is None:
            return process_images(self.processor, rows, self.placeholder)
        images = [picture for row in rows for picture in row]
        process = self.processor.image_processor
        pixels = process(images=images, return_tensors="pt") if images else {}
        return ProcessedImages(
            dict(pixels), [[self.placeholder * self.num_tokens] * len(row) for row in rows]
        )

    def _row(
        self, sample: ShardSample, texts_of_images: list[str]
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        rounds = conversation_rounds(sample)
        if self.rounds == "independent" and sample.pictures:
            texts = [self._texts(sample, [pair]) for pair in rounds]
            prefix, pieces = split_prefix([parts for parts in texts], self.mark)
            prefix = fill_marks(prefix, self.mark, texts_of_images)
        else:
            prefix, parts = "", self._texts(sample, rounds)
            if parts:
                parts[0] = (fill_marks(parts[0][0], self.mark, texts_of_images), False)
            pieces = [parts]
        ids = self._encode(prefix)
        labels = [IGNORED_LABEL] * len(ids)
        segments = [-1] * len(ids)
        positions = list(range(len(ids)))
        prefix_length = len(ids)
        for number, parts in enumerate(pieces):
            piece_ids, piece_labels = self._encode_parts(parts)
            if len(ids) + len(piece_ids) > self.max_text_tokens:
                if sample.pictures and not prefix:
                    raise ConfigError(
                        f"sample {sample.key}: its {len(piece_ids)} tokens exceed "
                        f"data.max_text_tokens={self.max_text_tokens}, and its images cannot be "
                        "cut; raise the limit or use smaller images"
                    )
                break
            start = prefix_length if prefix else len(ids)
            positions += range(start, start + len(piece_ids))
            segments += [number] * len(piece_ids)
            ids += piece_ids
            labels += piece_labels
        shifted = labels[1:] + [IGNORED_LABEL]
        if prefix:
            _cut_at_segment_ends(shifted, segments)
        return ids, shifted, positions, segments

    def _texts(self, sample: ShardSample, rounds: list[Round]) -> list[tuple[str, bool]]:
        """Alternating prompt and answer texts of a conversation: (text, is_answer)."""
        messages: list[dict[str, Any]] = []
        parts: list[tuple[str, bool]] = []
        written = ""
        for number, (question, answer) in enumerate(rounds):
            content: list[dict[str, Any]] = []
            if number == 0:
                content += [{"type": "image"}] * len(sample.pictures)
            content.append({"type": "text", "text": question.replace(IMAGE_MARK, "").strip()})
            messages.append({"role": "user", "content": content})
            asked = chat(self.processor, messages, generation=True)
            if answer is None:
                parts.append((asked[len(written) :], False))
                break
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
            told = chat(self.processor, messages, generation=False)
            if not (asked.startswith(written) and told.startswith(asked)):
                raise ConfigError(
                    f"model={self.model_name}: its chat template rewrites earlier turns, so "
                    "answers cannot be located; train on single-round samples"
                )
            parts += [(asked[len(written) :], False), (told[len(asked) :], True)]
            written = told
        return parts

    def _encode(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode_parts(self, parts: list[tuple[str, bool]]) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        for text, is_answer in parts:
            piece = self._encode(text)
            ids += piece
            labels += piece if is_answer else [IGNORED_LABEL] * len(piece)
        return ids, labels


def conversation_rounds(sample: ShardSample) -> list[Round]:
    """(question, answer) pairs of a LLaVA-style record; a last question may have no answer.

    Raises:
        ConfigError: turns do not alternate human, gpt.
    """
    turns = sample.record["conversations"]
    speakers = [turn["from"] for turn in turns]
    if speakers != (["human", "gpt"] * len(turns))[: len(turns)]:
        raise ConfigError(
            f"sample {sample.key}: conversations={speakers} must alternate human, gpt; "
            "mend the record or leave it out"
        )
    texts: list[str | None] = [turn["value"] for turn in turns]
    if len(texts) % 2:
        texts.append(None)
    return [(str(texts[i]), texts[i + 1]) for i in range(0, len(texts), 2)]


def split_prefix(
    texts: list[list[tuple[str, bool]]], placeholder: str
) -> tuple[str, list[list[tuple[str, bool]]]]:
    """The common text up to the last image, and what follows it in each round."""
    end = texts[0][0][0].rindex(placeholder) + len(placeholder)
    prefix = texts[0][0][0][:end]
    assert all(parts[0][0].startswith(prefix) for parts in texts)
    return prefix, [[(parts[0][0][end:], False), *parts[1:]] for parts in texts]


def _cut_at_segment_ends(labels: list[int], segments: list[int]) -> None:
    """The last token of a round predicts nothing: what follows belongs to another round."""
    for i in range(len(labels) - 1):
        if segments[i] != segments[i + 1]:
            labels[i] = IGNORED_LABEL


def attention_mask(segments: Tensor, dtype: torch.dtype, images: Tensor | None = None) -> Tensor:
    """Additive attention mask `[B, 1, T, T]` of independent rounds behind a shared prefix.

    Args:
        segments: -1 prefix, -2 padding, else the round, [B, T].
        dtype: of the mask.
        images: number of the image that a token belongs to, -1 for text, [B, T]; given where the
            tokens of one image see each other.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    shared = (segments == -1)[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=segments.device)
    seen = (causal & (same | shared) & (segments != -2)[:, None, :]) | itself
    if images is not None:
        seen |= (images[:, :, None] == images[:, None, :]) & (images >= 0)[:, :, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]
