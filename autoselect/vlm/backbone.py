"""A frozen VLM on stock transformers: visual tokens out, any subset of them back in.

The visual tokens are the ones the language model sees, after the projector. A pruned prompt keeps
the original position ids of what is left; the placeholders of removed tokens are dropped from the
sequence, so the language model really computes less.

Dimension letters: B prompts, N visual tokens, K kept ones, D width, T prompt tokens.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError, GateSite
from autoselect.vlm.attention_maps import attention_layers, attention_maps
from autoselect.vlm.families import FAMILIES, Family
from autoselect.vlm.features import feature_matrix
from autoselect.vlm.loading import load, weights_digest
from autoselect.vlm.positions import Positions
from autoselect.vlm.text.placeholders import (
    TOKENS_PER_IMAGE,
    check_counts,
    fixed_count,
    question_content,
)
from autoselect.vlm.text.tokens import adds_special_tokens, with_whole_template


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of some images, as the language model would see them.

    Attributes:
        tokens: [B, N, D].
        mask: true at real tokens, [B, N]; None when every token is real.
        grid: rows and columns of the tokens' raster; None when they form none.
        class_attention: attention of the vision tower's class token to each patch in the last used
            layer, mean over heads, [B, N]; without such a token what each patch receives on
            average; only on request.
        later: what the family adds to each token in L later layers, [B, N, L D]; None where
            nothing is.
        output: of the model's own encoder, from which all this was read.
        before: what the projector makes the tokens of, [B, N, P]; only on request.
    """

    tokens: Tensor
    mask: Tensor | None = None
    grid: tuple[int, int] | None = None
    class_attention: Tensor | None = None
    later: Tensor | None = None
    output: Any = None
    before: Tensor | None = None

    def at(self, site: GateSite) -> Tensor:
        """What is gated at a site: `channels`, or `before`."""
        if site == "after_projector":
            return self.channels
        assert self.before is not None, "encode with before_projector=True"
        return self.before

    @property
    def channels(self) -> Tensor:
        """Everything that carries the image: tokens and what later layers add, [B, N, (1 + L) D].

        A gate has to cover all of it.
        """
        return self.tokens if self.later is None else torch.cat([self.tokens, self.later], dim=-1)


PROJECTORS = ("multi_modal_projector", "connector", "aligner")


def square_grid(num_tokens: int) -> tuple[int, int] | None:
    """The square raster of `num_tokens`, or None."""
    side = round(num_tokens**0.5)
    return (side, side) if side * side == num_tokens else None


class FrozenVLM:
    """An unmodified transformers model in eval mode, no parameter of which requires a gradient.

    Args:
        model: a `...ForConditionalGeneration` with an image token.
        processor: its processor, with a chat template.
        name: how reports call it.
        digest: identifies the weights, see `weights_digest`.
    """

    def __init__(self, model: Any, processor: Any, name: str, digest: str = "") -> None:
        self.model = model.eval().requires_grad_(False)
        self.processor = with_whole_template(processor)
        self.name = name
        self.digest = digest
        image_token = getattr(model.config, "image_token_id", None)
        if image_token is None:
            image_token = getattr(model.config, "image_token_index", None)
        if image_token is None:
            raise ConfigError(
                f"model={name} ({model.config.model_type}) has no image token in its prompt; "
                "choose a model that puts image features into the language model's sequence"
            )
        self.image_token_id = int(image_token)
        self.family = FAMILIES.get(model.config.model_type, Family(fixed_tokens=True))
        self.positions = Positions(model.base_model, self.family.first_position)
        self.num_tokens = self._fixed_count()

    def _fixed_count(self) -> int | None:
        """N where every image has as many: as the processor counts them, else as configured."""
        length: int | None = getattr(self.model.config, "image_seq_length", None)
        if not self.family.fixed_tokens or length is None:
            return None
        if getattr(self.processor, "patch_size", None) is None:
            return length
        placeholder = self.processor.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return fixed_count(self.processor, placeholder)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "FrozenVLM":
        """Load a folder or a hub name through transformers' own path.

        Args:
            path: folder or hub name of an image-text-to-text model.
            dtype: of the weights; bfloat16 on accelerators and float32 on CPUs by default.
            device: where it runs.

        Raises:
            ConfigError: there is no model, it is no VLM, or its processor is missing.
        """
        model, processor = load(path, dtype, torch.device(device))
        return cls(model, processor, Path(path).name or str(path), weights_digest(path))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def width(self) -> int:
        """D, channels of a visual token after the projector."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def projector(self) -> torch.nn.Module | None:
        """The module between vision tower and language model, where the family names one."""
        inner = self.model.model
        return next(
            (m for name in PROJECTORS if (m := getattr(inner, name, None)) is not None), None
        )

    def width_at(self, site: GateSite) -> int:
        """Channels of a token at a site: D, or P before the projector.

        Raises:
            ConfigError: see `encode`.
        """
        if site == "after_projector":
            return self.width
        blank = self.pixel_inputs([Image.new("RGB", (64, 64))])
        return self.encode(blank, before_projector=True).at(site).shape[-1]

    def finished(self, tokens: Tensor, site: GateSite) -> Tensor:
        """Tokens of a site as the language model sees them, with gradient, [B, N, D]."""
        if site == "after_projector":
            return tokens
        assert self.projector is not None
        return self.projector(tokens.to(self.dtype))

    @property
    def is_plain(self) -> bool:
        """Whether its prompt is embeddings in columns of a causal mask, nothing more."""
        family = self.family
        unlike = (family.images_see_themselves, family.beyond_features, family.convolutions)
        return not (self.positions.on_grid or any(unlike) or family.untrained)

    @property
    def is_spliced(self) -> bool:
        """Whether `prompt` and `prefix` can write its prompts: plain, every image alike."""
        return self.is_plain and self.num_tokens is not None

    def vision_parameters(self) -> list[torch.nn.Parameter]:
        """What `encode` computes with: everything but the language model."""
        inside = {id(p) for p in self.model.get_decoder().parameters()}
        return [p for p in self.model.parameters() if id(p) not in inside]

    def fingerprint(self) -> str:
        """sha256 over all weights by name, to show that training left them alone."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def pixel_inputs(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """What the vision tower reads, from the model's own image processor."""
        return dict(self.processor.image_processor(images=images, return_tensors="pt"))

    def to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs of the model on its device, pixels in its dtype."""
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
        }

    @torch.no_grad()
    def encode(
        self,
        inputs: dict[str, Tensor],
        class_attention: bool = False,
        before_projector: bool = False,
    ) -> VisualTokens:
        """Visual tokens of a batch of images.

        Args:
            inputs: of `pixel_inputs`, or the pixels of a `TrainBatch`.
            class_attention: also return the attention of the vision tower.
            before_projector: also return what the projector makes the tokens of.

        Raises:
            ConfigError: attention is asked of a tower that gives none for each token, or the last
                of a model without a projector of single tokens; or the tokens are not as many as
                the processor's placeholders.
        """
        inputs = self.to_device(inputs)
        per_image = inputs.pop(TOKENS_PER_IMAGE, None)
        with self._watched_projector(before_projector) as seen:
            output = self.model.model.get_image_features(**inputs, return_dict=True)
        counts = [len(feature) for feature in output.pooler_output]
        if per_image is not None:
            counts = per_image.tolist()
        if self.num_tokens is not None:
            check_counts(self.name, sum(counts), self.num_tokens * len(counts))
        longest = max(counts)
        features = feature_matrix(output, later=True).split(counts)
        channels = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
        width = output.pooler_output[0].shape[-1]
        later = channels[..., width:] if channels.shape[-1] > width else None
        mask = None
        if min(counts) != longest:
            places = torch.arange(longest, device=channels.device)
            mask = places < torch.tensor(counts, device=channels.device)[:, None]
        attention = None
        if class_attention:
            attention = self._class_attention(inputs["pixel_values"], longest)
        tokens = channels[..., :width]
        before = self._one_per_token(seen, tokens) if before_projector else None
        grid = self._grid(inputs, longest)
        return VisualTokens(tokens, mask, grid, attention, later, output, before)

    def _grid(self, inputs: dict[str, Tensor], count: int) -> tuple[int, int] | None:
        """The raster of `count` tokens: as the inputs give it, else the square of fixed images."""
        if "image_grid_thw" in inputs:
            sizes = {tuple(size) for size in inputs["image_grid_thw"].tolist()}
            side = int(getattr(self.model.config.vision_config, "spatial_merge_size", 1))
            frames, rows, columns = sizes.pop()
            return (rows // side, columns // side) if not sizes and frames == 1 else None
        return None if self.num_tokens is None else square_grid(count)

    @contextmanager
    def _watched_projector(self, wanted: bool) -> Iterator[list[Tensor]]:
        """What the projector is called with meanwhile."""
        seen: list[Tensor] = []
        if not wanted or self.projector is None:
            yield seen
            return
        hook = self.projector.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            yield seen
        finally:
            hook.remove()

    def _one_per_token(self, seen: list[Tensor], tokens: Tensor) -> Tensor:
        """The projector's input, checked to be one vector per visual token, [B, N, P]."""
        if len(seen) == 1 and seen[0].shape[:-1] == tokens.shape[:-1]:
            return seen[0]
        raise ConfigError(
            f"gate.site=before_projector: model={self.name} has no projector that takes images "
            "of equal size token by token; use gate.site=after_projector"
        )

    def encode_images(
        self, images: list[Image.Image], class_attention: bool = False
    ) -> VisualTokens:
        """`encode` of PIL images."""
        return self.encode(self.pixel_inputs(images), class_attention)

    def _class_attention(self, pixel_values: Tensor, count: int) -> Tensor:
        tower: Any = getattr(self.model.model, "vision_tower", None)
        number = getattr(self.model.config, "vision_feature_layer", -1)
        layers = attention_layers(tower) if tower is not None else []
        if not layers or not isinstance(number, int):
            raise ConfigError(
                f"model={self.name} has no vision tower whose attention can be read; leave out the "
                "methods cls_attention and visionzip"
            )
        layer = layers[number if number < 0 else number - 1]
        maps = attention_maps(tower, layer, lambda: tower(pixel_values)).mean(dim=1)
        if maps.shape[-1] == count + 1:
            return maps[:, 0, 1:]
        if maps.shape[-1] == count:
            return maps.mean(dim=1)
        raise ConfigError(
            f"model={self.name}: its vision tower attends among {maps.shape[-1]} places, but the "
            f"language model sees {count} tokens; leave out the methods cls_attention and visionzip"
        )

    def prompt(self, questions: list[str], num_tokens: int | None = None) -> dict[str, Tensor]:
        """Prompts of one image and one question each, with all N placeholders, padded on the left.

        Args:
            questions: plain text; the image goes first, or where a question marks it.
            num_tokens: N; that of the model by default.

        Returns:
            `input_ids` and `attention_mask`, [B, T].
        """
        count = num_tokens or self.num_tokens
        assert count is not None, "num_tokens is needed for a model of varying image size"
        tokenizer = self.processor.tokenizer
        placeholder = tokenizer.convert_ids_to_tokens(self.image_token_id)
        texts = []
        for question in questions:
            content = question_content(question, num_images=1)
            text = chat(self.processor, [{"role": "user", "content": content}], generation=True)
            texts.append(text.replace(placeholder, placeholder * count))
        encoded = tokenizer(
            texts,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=adds_special_tokens(tokenizer, texts[0]),
        )
        return {name: encoded[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def prepare(self, images: list[Image.Image], questions: list[str]) -> dict[str, Tensor]:
        """Everything the untouched model needs: `model(**prepare(images, questions))`."""
        pixels = self.pixel_inputs(images)
        return {**self.prompt(questions), **pixels}

    @torch.no_grad()
    def prefix(
        self, prompt: dict[str, Tensor], tokens: Tensor, positions: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Inputs of the language model with only the given visual tokens in the sequence.

        Args:
            prompt: of `prompt`: N placeholders in every row, [B, T].
            tokens: the visual tokens that stay, [B, K, D]; K may be 0.
            positions: which of the N they are, ascending, [B, K]; None for all N.

        Returns:
            `inputs_embeds` [B, T-N+K, D], `attention_mask` and `position_ids` [B, T-N+K], where
            every token keeps the position that it has in the full prompt.

        Raises:
            ConfigError: a family whose prompt is more than embeddings, a causal mask and columns;
                or the tokens are not as many as their placeholders.
        """
        if not self.is_plain:
            raise ConfigError(
                f"model={self.name} ({self.model.config.model_type}) needs its own forward for "
                "pruned prompts; use autoselect.attach(model, selector, budget)"
            )
        input_ids, attention_mask = prompt["input_ids"], prompt["attention_mask"]
        is_image = input_ids == self.image_token_id
        counts = is_image.sum(dim=1)
        assert bool((counts == counts[0]).all()), "rows of one batch hold equally many placeholders"
        kept = ~is_image
        if positions is None:
            kept = torch.ones_like(is_image)
        else:
            first = is_image.int().argmax(dim=1, keepdim=True)
            kept = kept.scatter(1, first + positions, True) if positions.shape[1] else kept
        columns = kept.nonzero()[:, 1].view(len(kept), -1)
        embeds = self.model.get_input_embeddings()(input_ids.gather(1, columns))
        now_image = is_image.gather(1, columns)
        check_counts(self.name, tokens.shape[0] * tokens.shape[1], int(now_image.sum()))
        embeds = embeds.masked_scatter(now_image[..., None], tokens.to(embeds.dtype))
        position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        return {
            "inputs_embeds": embeds,
            "attention_mask": attention_mask.gather(1, columns),
            "position_ids": position_ids.gather(1, columns),
        }

    @torch.no_grad()
    def prefill(self, prefix: dict[str, Tensor]) -> Tensor:
        """Logits of the first answer token, [B, V]: one pass over the prompt."""
        hidden = self.model.model(**prefix, use_cache=True).last_hidden_state[:, -1]
        return self.model.get_output_embeddings()(hidden)

    @torch.no_grad()
    def generate(self, prefix: dict[str, Tensor], max_new_tokens: int = 16) -> list[str]:
        """Greedy answers as text, one per row."""
        tokenizer = self.processor.tokenizer
        produced = self.model.generate(
            **prefix,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        return [text.strip() for text in tokenizer.batch_decode(produced, skip_special_tokens=True)]


def chat(processor: Any, messages: list[dict[str, Any]], generation: bool) -> str:
    """Text of a conversation in the model's chat template."""
    return processor.apply_chat_template(messages, add_generation_prompt=generation, tokenize=False)
