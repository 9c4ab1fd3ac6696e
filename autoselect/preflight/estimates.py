"""Memory and floating-point operations of a training step, computed from sizes alone.

Memory counts the bytes of weights, of the trained part's state and of the activations kept for the
backward pass. It is that of the worst micro-batch within the limits of the settings, because a
single one ends the run; time is that of typical micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from autoselect.config import TrainConfig
from autoselect.config.setting import setting

if TYPE_CHECKING:  # transformers takes seconds to import
    from autoselect.vlm.shape import VLMShape

GIB = 2**30
STAGES = ("1", "2", "3", "3_offload")


@dataclass(frozen=True)
class Assumptions:
    """Numbers of an estimate that no configuration file states."""

    text_tokens: int = setting(128, "text tokens of a typical question with its answer")
    answer_tokens: int = setting(32, "answer tokens of a typical question; only they have logits")
    weight_bytes: int = setting(2, "bytes of a frozen weight or an activation: 2 or 4")
    utilisation: float = setting(0.35, "share of the peak rate that a step reaches, 0..1")
    overhead_gib: float = setting(
        1.5, "GiB per device for CUDA context, libraries and fragmentation"
    )
    bucket_bytes: int = setting(
        2 * 4 * 20_000_000, "bytes per device of DeepSpeed's communication buffers"
    )
    prefetched_layers: int = setting(3, "whole layers that ZeRO-3 holds at once")


BYTES = {"auto": 2, "bfloat16": 2, "float32": 4}
"""Bytes of a frozen weight by the setting `dtype`; `auto` is bfloat16 on accelerators."""


@dataclass(frozen=True)
class MicroBatch:
    """What one device computes at once.

    Attributes:
        rows: number of rows, of one image each.
        length: tokens of a row, image and padding included.
        answer_tokens: answer tokens of a row.
    """

    rows: int
    length: int
    answer_tokens: int


@dataclass(frozen=True)
class Memory:
    """Bytes per device, by use."""

    frozen: float
    trained: float
    activations: float
    buffers: float

    @property
    def total(self) -> float:
        return self.frozen + self.trained + self.activations + self.buffers


@dataclass(frozen=True)
class Estimate:
    """What a training costs on a model.

    Attributes:
        shape: sizes of the model.
        config: settings of the training.
        have: numbers that neither of them states.
    """

    shape: VLMShape
    config: TrainConfig
    have: Assumptions = Assumptions()

    def typical_batch(self, rows: int) -> MicroBatch:
        length = self.shape.visual_tokens + self.have.text_tokens
        return MicroBatch(rows, length, self.have.answer_tokens)

    def worst_batch(self, rows: int) -> MicroBatch:
        """Return rows of `data.max_text_tokens`, in which everything but the image is an answer.

        One row of that length is enough, because the others are padded to it.
        """
        length = max(self.config.data.max_text_tokens, self.typical_batch(rows).length)
        return MicroBatch(rows, length, length - self.shape.visual_tokens)

    @cached_property
    def trained_parameters(self) -> int:
        """Number of parameters of Scorer and Denoiser, counted on modules without memory.

        Raises:
            ConfigError: the model does not support the gate's site.
        """
        import torch

        from autoselect.method.denoiser import Denoiser
        from autoselect.method.scorer import Scorer

        shape, config = self.shape, self.config
        with torch.device("meta"):
            scorer = Scorer(shape.width_at(config.gate.site), config.scorer)
            denoiser = Denoiser(shape.repaired_width_at(config.gate.site), config.denoiser)
        return sum(p.numel() for module in (scorer, denoiser) for p in module.parameters())

    def activation_bytes(self, batch: MicroBatch) -> float:
        """Return the most bytes of activations that one micro-batch needs at the same time.

        Frozen linear layers keep no input, because their weights get no gradient. What a layer of
        the language model keeps per token: two norms in float32; queries, keys and values (repeated
        for every query head, which attention with a mask needs); attention output; three MLP
        products. When the backward pass begins, all layers are kept, and each logit takes three
        float32 numbers: log-probability, its gradient, and the logit's gradient. With activation
        checkpointing each layer keeps its input only, and the layers are computed again one by one,
        after the logits.
        """
        shape, config = self.shape, self.config
        b, d = self.have.weight_bytes, shape.width
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
        repaired = shape.repaired_width_at(config.gate.site)
        inside = 6 if config.denoiser.attention == "global" else 4
        denoiser = config.denoiser.num_layers * 4 * (5 * repaired + inside * inner)
        gate = 4 * 3 * gated
        scorer = 4 * (gated + 16 * config.scorer.hidden_size * max(1, config.scorer.num_layers))
        vision = batch.rows * shape.patches * shape.vision_width * (4 * b + 8)
        if config.gate.site == "before_encoder":  # its layers keep what the language model's keep
            vision *= 2 * shape.vision_layers
        # Pixels arrive in float32 and are cast for the tower.
        vision += batch.rows * shape.patches * shape.patch_values * (4 + b)
        return float(language + visual * (denoiser + gate + scorer) + vision)

    def memory(self, stage: str, gpus: int, batch: MicroBatch) -> Memory:
        """Return the bytes per device at one ZeRO stage.

        The trained part is float32: 4 bytes for a weight, 4 for its gradient, 8 for two moments.
        Stages 1 and 2 keep a partitioned float32 copy beside the weights; stage 3 partitions
        everything.
        """
        have, count = self.have, self.trained_parameters
        frozen = self.shape.parameters * have.weight_bytes
        layer = self.shape.largest_layer_parameters * have.weight_bytes
        gathered = float(layer * have.prefetched_layers)
        if stage == "3_offload":
            share = gathered
            trained = 4.0 * count
        elif stage == "3":
            share = frozen / gpus + (gathered if gpus > 1 else 0)
            trained = 20.0 * count / gpus
        else:
            share = frozen
            trained = {"1": 8.0, "2": 4.0 + 4.0 / gpus}[stage] * count + 12.0 * count / gpus
        return Memory(
            frozen=share,
            trained=trained,
            activations=self.activation_bytes(batch),
            buffers=have.overhead_gib * GIB + have.bucket_bytes,
        )

    def step_flops(self, rows: int) -> float:
        """Return the floating-point operations of a step over `rows` typical rows, on all devices.

        Per token a frozen weight of the language model costs 2 operations forward, 2 backward, and
        2 if activations are recomputed; a vision weight 2; a trained weight 6. Attention adds
        `4 T^2 D` per layer and pass.
        """
        shape, config = self.shape, self.config
        length = self.typical_batch(rows).length
        passes = 3 if config.activation_checkpointing else 2
        linear = 2.0 * passes * shape.language_parameters * length
        # The backward of attention costs twice its forward, frozen or not.
        attention = (passes + 1) * 4.0 * length**2 * shape.width * shape.layers
        head = 4.0 * shape.vocabulary * shape.width * self.have.answer_tokens
        vision = 2.0 * shape.vision_parameters * shape.patches
        seen = shape.patches_per_tile  # tiles of one image do not see each other in the tower
        vision += 4.0 * shape.patches * seen * shape.vision_width * shape.vision_layers
        if config.gate.site == "before_encoder":  # the gradient goes back through the tower
            vision *= 2
        trained = 6.0 * self.trained_parameters * shape.visual_tokens
        return rows * (linear + attention + head + vision + trained)

    def smallest_stage(self, gpus: int, rows: int, gib: float) -> str | None:
        """Return the first of `STAGES` at which the worst micro-batch fits, or None."""
        worst = self.worst_batch(rows)
        for stage in STAGES:
            if self.memory(stage, gpus, worst).total <= gib * GIB:
                return stage
        return None
