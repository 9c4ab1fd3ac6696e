"""What a step computes, in counts that the host knows, and how fast it was.

    images, visual and text tokens per second, over all devices
    padding share       columns that hold no token, of all columns
    data-wait share     time in which the step waited for its batches, of all time
    model TFLOP/s       operations that the step needs, per device and second

Model FLOPs utilisation (MFU) is the last number divided by the peak rate of the device at the
dtype of the model. Operations per token: 2 per parameter of encoder and projector; 4 per parameter
of the language model, for its forward pass and the backward pass to its inputs, as its weights have
no gradient; 12 T D per layer for attention in a row of T tokens; 4 V D at answer tokens for the
head. Scorer and Denoiser, recomputed activations and padding are not counted.

Dimension letters: T tokens of a row, D width, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import TrainBatch
from autoselect.vlm.batches.rows import PADDING_SEGMENT
from autoselect.vlm.head import output_embeddings
from autoselect.vlm.shape import patches_per_token


@dataclass(frozen=True)
class ModelSize:
    """What the operations of a step depend on.

    Attributes:
        vision: parameters of encoder and projector.
        language: parameters of the language model's layers.
        head: V times D.
        attention: layers times D.
        patches: patches of the encoder per visual token.
    """

    vision: int
    language: int
    head: int
    attention: int
    patches: int

    @classmethod
    def of(cls, vlm: FrozenVLM) -> "ModelSize":
        model = vlm.model
        text, embeddings = model.config.get_text_config(), model.get_input_embeddings()
        output, inside = output_embeddings(model), {id(p) for p in embeddings.parameters()}
        language = _count(p for p in model.get_decoder().parameters() if id(p) not in inside)
        words = _count({id(p): p for m in (embeddings, output) for p in m.parameters()}.values())
        return cls(
            _count(model.parameters()) - language - words,
            language,
            _count(output.parameters()),
            text.num_hidden_layers * text.hidden_size,
            patches_per_token(model.config),
        )


@dataclass(frozen=True)
class StepWork:
    """Counts of the micro-batches of one step, on one rank or summed over ranks.

    Attributes:
        answers: answer tokens.
        images: images.
        visual: visual tokens.
        tokens: tokens, visual ones included.
        columns: tokens and padding.
        squares: sum of the squared lengths of all rows.
    """

    answers: float
    images: float
    visual: float
    tokens: float
    columns: float
    squares: float

    @classmethod
    def of(cls, batches: Sequence[TrainBatch]) -> "StepWork":
        lengths = [(b.on_host.segments.numpy() != PADDING_SEGMENT).sum(axis=1) for b in batches]
        return cls(
            sum(batch.num_answer_tokens for batch in batches),
            sum(batch.num_images for batch in batches),
            sum(sum(batch.tokens_per_image) for batch in batches),
            sum(int(own.sum()) for own in lengths),
            sum(batch.on_host.segments.numel() for batch in batches),
            sum(int((own**2).sum()) for own in lengths),
        )

    def operations(self, size: ModelSize) -> float:
        """Return the floating-point operations that the step needs, as the module says."""
        vision = 2.0 * size.vision * size.patches * self.visual
        language = 4.0 * size.language * self.tokens + 12.0 * size.attention * self.squares
        return vision + language + 4.0 * size.head * self.answers

    def rates(
        self, size: ModelSize, seconds: float, waited: float, devices: int
    ) -> dict[str, float]:
        """Return the metrics of a step that took `seconds` after `waited` seconds for its data."""
        whole = seconds + waited
        return {
            "train/tokens_per_s": self.answers / whole,
            "train/images_per_s": self.images / whole,
            "train/visual_tokens_per_s": self.visual / whole,
            "train/text_tokens_per_s": (self.tokens - self.visual) / whole,
            "train/padding_share": 1 - self.tokens / max(self.columns, 1.0),
            "train/data_wait_share": waited / whole,
            "train/model_tflops_per_s": self.operations(size) / whole / devices / 1e12,
            "train/step_ms": seconds * 1000,
        }


def _count(parameters: Iterable[Tensor]) -> int:
    """Count parameters, at ZeRO-3 those of all ranks."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in parameters)
