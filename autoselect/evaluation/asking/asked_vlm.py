"""From images and questions to texts, by the model's own processor and `generate`.

Images are encoded once. Their features then enter every call as `mm_encoder_outputs`, reduced to
the tokens that a method keeps by the same code that `attach` uses.

Dimension letters: R rows (one question each), T prompt tokens, N visual tokens of one image, K that
stay, D width, L later layers with features of their own (deepstack).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoselect.config import GateSite
from autoselect.evaluation.asking.endings import answer_ids, up_to_end
from autoselect.evaluation.asking.likelihood import continuation_log_likelihood, mean_losses
from autoselect.evaluation.asking.llm_attention import visual_attention
from autoselect.evaluation.asking.replies import Generated
from autoselect.evaluation.asking.tower_attention import tower_attention
from autoselect.evaluation.samples import Box, EvaluationSample, names_of
from autoselect.evaluation.scores.scoring import Place
from autoselect.pruning.attachment import keeping
from autoselect.vlm import FrozenVLM
from autoselect.vlm.backbone import chat
from autoselect.vlm.blocks import Block
from autoselect.vlm.columns import PADDING, remaining_columns, take_columns
from autoselect.vlm.features import with_entries
from autoselect.vlm.rasters import part_seen, raster_of
from autoselect.vlm.sites import SITES
from autoselect.vlm.text.placeholders import question_content
from autoselect.vlm.text.tokens import end_ids

WITH_LOGITS = {"return_dict_in_generate": True, "output_logits": True}


@dataclass(frozen=True)
class ImageTokens:
    """One encoded image, or one tile if the prompt does not tell tiles from images.

    Attributes:
        key: its name, from which random choices are drawn.
        features: projector outputs, each followed by the features for later layers, [N, (1 + L) D].
        width: D.
        grid: rows and columns of its raster; None if its tokens are not one raster.
        class_attention: attention that each token receives from the vision tower's class token, or
            the mean over all tokens in a tower without a class token, [N].
        boxes: known regions as fractions of what the encoder sees of the image, which may be a part
            of it (left, top, right, bottom).
        at_site: features at earlier sites, [N, C] each.
        onward: runs what follows each of these sites, see `SelectionContext`.
    """

    key: str
    features: Tensor
    width: int
    grid: tuple[int, int] | None = None
    class_attention: Tensor | None = None
    boxes: tuple[Box, ...] = ()
    at_site: Mapping[str, Tensor] = field(default_factory=dict)
    onward: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def tokens(self) -> Tensor:
        """Return the projector outputs alone, [N, D]."""
        return self.features[:, : self.width]


@dataclass(frozen=True)
class Encoded:
    """Encoded images of some samples.

    Attributes:
        images: images of every sample, in order of appearance.
        output: the encoder's output, whose container types are kept when features are replaced.
        of_class_token: whether `class_attention` is that of a class token; None if it was not read.
    """

    images: list[list[ImageTokens]]
    output: Any
    of_class_token: bool | None = None


@dataclass(frozen=True)
class Prompts:
    """Questions that are answered together.

    Attributes:
        inputs: arguments of `generate` without pixels, padded on the left, [R, T].
        blocks: places of the images in the rows.
        images: the image of each block.
    """

    inputs: dict[str, Tensor]
    blocks: list[Block]
    images: list[ImageTokens]

    def features(self) -> list[Tensor]:
        return [image.features for image in self.images]


class AskedVLM:
    """A model that answers questions about images; no selector is attached to it."""

    def __init__(self, vlm: FrozenVLM) -> None:
        self.vlm = vlm
        self._part_seen = lru_cache(partial(part_seen, vlm.seen))

    def prompt(self, image_count: int, question: str) -> str:
        """Write a question in the model's chat template, up to where its answer begins.

        The images stand at the marks in the question, or first if the marks are not `image_count`.
        """
        messages = [{"role": "user", "content": question_content(question, image_count)}]
        return chat(self.vlm.processor, messages, generation=True)

    @torch.no_grad()
    def encode(
        self,
        samples: Sequence[EvaluationSample],
        attention: bool = False,
        sites: Collection[GateSite] = (),
    ) -> Encoded:
        """Encode the images of some samples.

        Args:
            samples: images and questions.
            attention: also read the tower's class attention.
            sites: earlier sites whose features are read too.

        Raises:
            ConfigError: processor and model do not fit, the class attention cannot be read, or the
                model does not have a site.
        """
        adapter = self.vlm.adapter
        rows = [sample.images for sample in samples]
        texts = [self.prompt(len(sample.images), sample.asked(0)) for sample in samples]
        inputs = self.vlm.inputs(rows, texts, names_of(samples))
        outputs = adapter.encode(inputs)
        blocks = adapter.blocks(inputs["input_ids"], outputs)
        features, _ = adapter.tokens(blocks, outputs, later=True)
        earlier = {site: SITES[site].encode(adapter, inputs) for site in sites}
        at_site = {site: adapter.tokens(blocks, own)[0] for site, own in earlier.items()}
        onward: dict[str, Callable[[Tensor], Tensor]] = {
            site: SITES[site].onward(adapter, own) for site, own in earlier.items()
        }
        total = sum(map(len, blocks))  # `features` is padded if images differ in size
        seen = tower_attention(adapter, inputs, total) if attention else None
        images: list[list[ImageTokens]] = [[] for _ in samples]
        counts = torch.tensor([block.row for block in blocks]).bincount(minlength=len(samples))
        for number, (block, own) in enumerate(zip(blocks, features, strict=True)):
            sample, place, size = samples[block.row], len(images[block.row]), len(block)
            whole = int(counts[block.row]) == len(sample.images)  # one block per image, no tiles
            alone = whole and len(sample.images) == 1
            grid = None
            if whole:
                grid = raster_of(size, adapter.family.raster, sample.images[place].size)
            received = None if seen is None else seen.values[block.start :][:size]
            images[block.row].append(
                ImageTokens(
                    key=sample.key if alone else f"{sample.key}/{place}",
                    features=own[:size],
                    width=adapter.width,
                    grid=grid,
                    class_attention=received,
                    boxes=self._boxes(sample) if alone and grid else (),
                    at_site={site: found[number, :size] for site, found in at_site.items()},
                    onward=onward,
                )
            )
        return Encoded(images, outputs["image"], None if seen is None else seen.of_class_token)

    def _boxes(self, sample: EvaluationSample) -> tuple[Box, ...]:
        """Return the boxes of a sample as fractions of what the encoder sees of its image."""
        boxes = sample_boxes(sample)
        if not boxes:
            return ()
        (left, right), (top, bottom) = self._part_seen(sample.image.size)
        starts, sides = np.array([left, top] * 2), np.array([right - left, bottom - top] * 2)
        return tuple(map(tuple, ((np.array(boxes) - starts) / sides).tolist()))

    def prompts(
        self, samples: Sequence[EvaluationSample], encoded: Encoded, places: Sequence[Place]
    ) -> Prompts:
        texts = [self.prompt(len(samples[i].images), samples[i].asked(r)) for i, r in places]
        inputs = self.vlm.inputs([samples[i].images for i, _ in places], texts)
        images = [image for i, _ in places for image in encoded.images[i]]
        outputs = {"image": with_entries(encoded.output, [image.features for image in images])}
        lengths = [len(image) for image in images]
        blocks = self.vlm.adapter.blocks(inputs["input_ids"], outputs, lengths)
        return Prompts(self.vlm.adapter.with_outputs(inputs, {}), blocks, images)

    def call(
        self, prompts: Prompts, encoded: Encoded, features: Sequence[Tensor] | None = None
    ) -> dict[str, Any]:
        """Return the arguments of a call with encoded images.

        `features` [N, (1 + L) D] each, if given, replace those of every image.
        """
        entries = prompts.features() if features is None else features
        outputs = {"image": with_entries(encoded.output, entries)}
        return self.vlm.adapter.with_outputs(prompts.inputs, outputs)

    @torch.inference_mode()
    def question_embeddings(self, prompts: Prompts) -> list[Tensor]:
        """Return the mean input embedding of the text around each image, [D] each.

        The text is the whole prompt, template included, without placeholders and padding.
        """
        ids = prompts.inputs["input_ids"]
        is_text = prompts.inputs["attention_mask"].bool() & ~self.vlm.adapter.is_image(ids)
        columns = remaining_columns(is_text)
        real = (columns != PADDING)[..., None]
        embeds = self.vlm.model.get_input_embeddings()(take_columns(ids, columns))
        weights = real.to(embeds.dtype)
        means = (embeds * weights).sum(dim=1) / weights.sum(dim=1)
        return [means[block.row] for block in prompts.blocks]

    def llm_attention(self, prompts: Prompts, encoded: Encoded) -> list[Tensor]:
        call = self.call(prompts, encoded)
        return visual_attention(self.vlm.adapter, call, prompts.blocks)

    @torch.inference_mode()
    def generated(
        self,
        call: Mapping[str, Any],
        kept: Sequence[Tensor] | None,
        options: Mapping[str, Any],
        likelihood: bool = False,
    ) -> list[Generated]:
        """Return what the model generates for each row.

        Args:
            call: arguments of `generate`.
            kept: positions that stay of every image, ascending, [K] each; None for the untouched
                model.
            options: further arguments of `generate`, such as `max_new_tokens`.
            likelihood: compute the losses of the answers; for greedy decoding.
        """
        tokenizer, model = self.vlm.processor.tokenizer, self.vlm.model
        pad = tokenizer.pad_token_id
        with nullcontext() if kept is None else keeping(model, kept):
            produced = model.generate(
                **call,
                **options,
                pad_token_id=tokenizer.eos_token_id if pad is None else pad,
                **(WITH_LOGITS if likelihood else {}),
            )
        new = (produced.sequences if likelihood else produced)[:, call["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        ends = end_ids(model, tokenizer)
        rows = [up_to_end(ids, ends) for ids in new.tolist()]
        losses = mean_losses(produced.logits, rows) if likelihood else [None] * len(rows)
        return [
            Generated(text.strip(), ids, any(i in ends for i in ids), loss)
            for text, ids, loss in zip(texts, rows, losses, strict=True)
        ]

    def generate(
        self,
        call: Mapping[str, Any],
        kept: Sequence[Tensor] | None,
        options: Mapping[str, Any],
    ) -> list[str]:
        """Return the texts of `generated` alone."""
        return [one.text for one in self.generated(call, kept, options)]

    def answer_ids(self, image_count: int, question: str, answer: str) -> list[int]:
        """Return the token ids of an answer and of its end, as they follow the question."""
        return answer_ids(self.vlm, image_count, question, answer)

    def losses(
        self,
        call: Mapping[str, Any],
        kept: Sequence[Tensor] | None,
        references: Sequence[list[int]],
    ) -> list[float]:
        """Return each reference's negative log-likelihood in nats per token.

        Arguments as of `generated`; `references` holds the token ids of one answer per row.
        """
        scored = continuation_log_likelihood(self.vlm.model, call, kept, references)
        pairs = zip(scored.sums.tolist(), references, strict=True)
        return [-total / len(ids) for total, ids in pairs]


def sample_boxes(sample: EvaluationSample) -> tuple[Box, ...]:
    """Return the boxes of a sample's questions as fractions of its one image."""
    width, height = sample.image.size
    return tuple(
        (left / width, top / height, right / width, bottom / height)
        for regions in sample.boxes
        for left, top, right, bottom in regions
    )
