"""Memory and operations of a training step, from counts alone.

Bytes of weights, of the trained part's state and of the activations that the backward pass keeps,
and floating-point operations per step. Memory is decided by the worst micro-batch that a run's
limits admit, because one of them ends the run; time by the typical one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoselect.config import TrainConfig

if TYPE_CHECKING:  # transformers takes seconds to import
    from autoselect.vlm.shape import VLMShape

GIB = 2**30
STAGES = ("1", "2", "3", "3_offload")


@dataclass(frozen=True)
class Assumptions:
    """What the configuration does not say.

    Attributes:
        text_tokens: per typical row beside the visual ones.
        answer_tokens: per typical row; logits exist for them only.
        weight_bytes: per frozen weight and activation value: 2 bfloat16, 4 float32.
        utilisation: share of the peak rate that a step reaches.
        overhead_gib: CUDA context, libraries, fragmentation, per device.
        bucket_bytes: communication buffers of DeepSpeed, per device.
        prefetched_layers: whole layers that ZeRO-3 holds at once.
    """

    text_tokens: int = 128
    answer_tokens: int = 32
    weight_bytes: int = 2
    utilisation: float = 0.35
    overhead_gib: float = 1.5
    bucket_bytes: int = 2 * 4 * 20_000_000
    prefetched_layers: int = 3


BYTES = {"auto": 2, "bfloat16": 2, "float32": 4}
"""Of a frozen weight, by `dtype` of the configuration; `auto` is bfloat16 on accelerators."""


@dataclass(frozen=True)
class MicroBatch:
    """What one device computes at once.

    Attributes:
        rows: of one image each.
        length: tokens of every row, with its image and with padding.
        answer_tokens: of every row.
    """

    rows: int
    length: int
    answer_tokens: int


def typical_batch(shape: VLMShape, rows: int, have: Assumptions) -> MicroBatch:
    """Rows as they are assumed to be."""
    return MicroBatch(rows, shape.visual_tokens + have.text_tokens, have.answer_tokens)


def worst_batch(shape: VLMShape, rows: int, config: TrainConfig, have: Assumptions) -> MicroBatch:
    """Rows that fill `data.max_text_tokens`, images included, with answers behind the image.

    One row of that length is enough to pad all others to it.
    """
    length = max(config.data.max_text_tokens, typical_batch(shape, rows, have).length)
    return MicroBatch(rows, length, length - shape.visual_tokens)


@dataclass(frozen=True)
class Memory:
    """Bytes per device."""

    frozen: float
    trained: float
    activations: float
    buffers: float

    @property
    def total(self) -> float:
        return self.frozen + self.trained + self.activations + self.buffers


def trained_parameters(shape: VLMShape, config: TrainConfig) -> int:
    """Parameters of Scorer and Denoiser, counted on modules without memory.

    Raises:
        ConfigError: the gate's site does not go with the model.
    """
    import torch

    from autoselect.method.denoiser import Denoiser
    from autoselect.method.scorer import Scorer

    with torch.device("meta"):
        scorer = Scorer(shape.width, config.scorer)
        denoiser = Denoiser(shape.width_at(config.gate.site), config.denoiser)
    return sum(p.numel() for module in (scorer, denoiser) for p in module.parameters())


def activation_bytes(
    shape: VLMShape, batch: MicroBatch, config: TrainConfig, have: Assumptions
) -> float:
    """The most bytes of activations that one micro-batch has alive at a time.

    Frozen linear layers keep no input (only weights get no gradient), so per language-model layer
    and token there remain: two norms in float32, queries, keys and values (repeated for every query
    head, as attention with a mask takes them), attention output, and three MLP products. Of each
    logit there are the log-probability, its gradient and the logit's, in float32, when the backward
    pass begins and all layers are alive. With activation checkpointing every layer keeps its input,
    and they come to life one by one, after the logits.
    """
    b, d = have.weight_bytes, shape.width
    tokens = batch.rows * batch.length
    heads = max(d, shape.key_value_width)
    layer = tokens * (8 * d + b * (4 * heads + 3 * shape.mlp_width))
    logits = batch.rows * batch.answer_tokens * shape.vocabulary * 12
    if config.activation_checkpointing:
        language = shape.layers * tokens * b * d + max(layer, logits)
    else:
        language = shape.layers * layer + logits
    visual = batch.rows * shape.visual_tokens
    inner, gated = config.denoiser.hidden_size, shape.width_at(config.gate.site)
    denoiser = config.denoiser.num_layers * 4 * (5 * gated + 4 * inner)
    gate = 4 * 3 * gated
    scorer = 4 * (d + 16 * config.scorer.hidden_size * max(1, config.scorer.num_layers))
    vision = batch.rows * shape.patches * shape.vision_width * (4 * b + 8)
    return float(language + visual * (denoiser + gate + scorer) + vision)


def memory(
    shape: VLMShape,
    stage: str,
    gpus: int,
    batch: MicroBatch,
    config: TrainConfig,
    have: Assumptions,
) -> Memory:
    """Bytes per device at one ZeRO stage.

    The trained part is float32: weights and gradients 4 bytes each, two moments 8; stages 1 and 2
    keep a partitioned float32 copy beside the weights, stage 3 partitions everything.
    """
    count, frozen = trained_parameters(shape, config), shape.parameters * have.weight_bytes
    if stage == "3_offload":
        share = 1.0 * shape.largest_layer_parameters * have.weight_bytes * have.prefetched_layers
        trained = 4.0 * count
    elif stage == "3":
        gathered = shape.largest_layer_parameters * have.weight_bytes * have.prefetched_layers
        share = frozen / gpus + (gathered if gpus > 1 else 0)
        trained = 20.0 * count / gpus
    else:
        share = frozen
        trained = {"1": 8.0, "2": 4.0 + 4.0 / gpus}[stage] * count + 12.0 * count / gpus
    return Memory(
        frozen=share,
        trained=trained,
        activations=activation_bytes(shape, batch, config, have),
        buffers=have.overhead_gib * GIB + have.bucket_bytes,
    )


def step_flops(shape: VLMShape, rows: int, config: TrainConfig, have: Assumptions) -> float:
    """Floating-point operations of one step over `rows` typical rows, all devices together.

    A frozen weight costs 2 operations per token forward and 2 backward (4NT, against 6NT when it is
    trained), 6NT with recomputation; a vision weight 2; a trained weight 6. Attention adds
    `4 T^2 D` per layer and direction of work.
    """
    length = typical_batch(shape, rows, have).length
    passes = 3 if config.activation_checkpointing else 2
    linear = 2.0 * passes * shape.language_parameters * length
    # The backward of attention costs twice its forward, frozen or not.
    attention = (passes + 1) * 4.0 * length**2 * shape.width * shape.layers
    head = 4.0 * shape.vocabulary * shape.width * have.answer_tokens
    vision = 2.0 * shape.vision_parameters * shape.patches
    seen = shape.patches_per_tile  # tiles of one image do not see each other in the tower
    vision += 4.0 * shape.patches * seen * shape.vision_width * shape.vision_layers
    trained = 6.0 * trained_parameters(shape, config) * shape.visual_tokens
    return rows * (linear + attention + head + vision + trained)


def smallest_stage(
    shape: VLMShape, gpus: int, rows: int, config: TrainConfig, have: Assumptions, gib: float
) -> str | None:
    """The first of `STAGES` at which the worst micro-batch fits, or None."""
    worst = worst_batch(shape, rows, config, have)
    for stage in STAGES:
        if memory(shape, stage, gpus, worst, config, have).total <= gib * GIB:
            return stage
    return None
