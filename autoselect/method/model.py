"""AutoSelect = frozen VLM + Scorer + Denoiser: one training step from pixels to loss.

    visual  = site.read(adapter, pixels, ids)           encode -> blocks -> tokens, no gradient
    scores  = scorer(visual.tokens)                     less what is covered, see coverage.py
    gated   = gate_tokens(visual.gated, scores, ...)    soft top-K and noise gate, see gating.py
    outputs = site.finish(gated, denoiser)              repair; encoder and projector if they follow
    loss    = answer_loss(outputs)                      gradient flows through the frozen LLM

Dimension letters: I images, N visual tokens, D width, L later layers with features of their own
(deepstack), C channels that are gated, B rows, T text tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from autoselect.config import ConfigError, TrainConfig
from autoselect.method.denoiser import Denoiser
from autoselect.method.gating import Gated, GateSetting, gate_scores, gate_tokens
from autoselect.method.scorer import Scorer
from autoselect.method.statistics import TokenStatistics
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import TrainBatch
from autoselect.vlm.batches.rows import PADDING_SEGMENT, PREFIX_SEGMENT
from autoselect.vlm.forward import answer_loss
from autoselect.vlm.sites import SITES, VisualTokens
from autoselect.vlm.text.tokens import IGNORED_LABEL

SMALLEST_GATE = 1e-6


@dataclass(frozen=True)
class StepOutput:
    """Sums over one micro-batch; the caller divides by counts of the whole global batch.

    Attributes:
        loss_sum: next-token loss summed over answer tokens, with gradient, 0-d.
        answer_tokens: how many there are.
        gate_sum: sum of all gates, 0-d.
        top_gate_sum: sum of the K largest gates of every image, for the polarisation, 0-d.
        wanted_sum: what both would be at best: K of every image, or all its tokens if it has fewer.
        images: images of the micro-batch.
        smaller_images: those with fewer tokens than K, which keep all of them.
    """

    loss_sum: Tensor
    answer_tokens: int
    gate_sum: Tensor
    top_gate_sum: Tensor
    wanted_sum: int
    images: int
    smaller_images: int


class AutoSelect(nn.Module):
    """The trained Scorer and Denoiser around a frozen VLM.

    Args:
        vlm: the frozen backbone; none of its parameters gets a gradient.
        config: settings of the training.
        statistics: mean and spread of the visual tokens over the data set.

    Raises:
        ConfigError: closed gates are to remove tokens, but the model's attention takes no weights
            of tokens.
    """

    def __init__(self, vlm: FrozenVLM, config: TrainConfig, statistics: TokenStatistics) -> None:
        super().__init__()
        self.vlm = vlm
        self.adapter = vlm.adapter
        self.frozen = vlm.model
        self.gate_config = config.gate
        self.soft_removal = config.gate.soft_removal
        if self.soft_removal and vlm.family.padding_mask_only:
            raise ConfigError(
                f"gate.soft_removal=true: the attention of model={vlm.name} "
                f"({vlm.model.config.model_type}) takes no weights of tokens; set "
                "gate.soft_removal=false"
            )
        self.activation_checkpointing = config.activation_checkpointing
        self.site = SITES[config.gate.site]
        # Statistics know the width before the projector; the tower may be split over ranks here.
        after = config.gate.site == "after_projector"
        self.scorer = Scorer(vlm.width if after else len(statistics.mean), config.scorer)
        self.denoiser = Denoiser(self.site.repaired_width(vlm.adapter), config.denoiser)
        self.statistics = statistics

    def train(self, mode: bool = True) -> "AutoSelect":
        """Switch the mode of Scorer and Denoiser; the frozen VLM stays in eval mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, batch: TrainBatch, setting: GateSetting) -> StepOutput:
        """Return loss and gate statistics of one micro-batch.

        A batch without images selects nothing, but its rank takes part in the step: a row with a
        blank image goes through all parts and counts for nothing. Under ZeRO-3 each part is
        gathered from all ranks when it is used, and a rank that leaves one out makes them wait.
        """
        rows = batch if batch.num_images else self.with_blank_image(batch)
        pixels = self.vlm.to_device(rows.pixels)
        ids = rows.on_host.input_ids.numpy()
        visual = self.site.read(self.adapter, pixels, ids, rows.tokens_per_image)
        gated = self.gate(visual, setting, rows.image_ids)
        outputs = self.repaired(visual, gated.tokens)
        loss_sum = answer_loss(
            self.adapter,
            rows,
            outputs,
            self.activation_checkpointing,
            self.attention_logits(visual, gated.gates),
        )
        if not batch.num_images:
            zero = torch.zeros((), device=loss_sum.device)
            return StepOutput(loss_sum, batch.num_answer_tokens, zero, zero, 0, 0, 0)
        gates = gated.gates.detach()
        budget = setting.token_budget
        return StepOutput(
            loss_sum,
            batch.num_answer_tokens,
            gates.sum(),
            gates.topk(min(budget, gates.shape[1]), dim=-1).values.sum(),
            sum(min(budget, count) for count in visual.counts),
            batch.num_images,
            sum(count < budget for count in visual.counts),
        )

    def gate(self, visual: VisualTokens, setting: GateSetting, image_ids: Tensor) -> Gated:
        """Return gated tokens [I, N, C] and gates [I, N]."""
        scores = self.scorer(visual.tokens, visual.mask)
        budget = setting.token_budget
        return gate_tokens(
            self.gate_config.kind,
            visual.gated,
            gate_scores(self.gate_config, scores, visual.tokens, budget, visual.mask),
            setting,
            self.statistics,
            image_ids,
            visual.mask,
        )

    def repaired(self, visual: VisualTokens, gated: Tensor) -> dict[str, Any]:
        """Return encoder outputs with gated tokens [I, N, C], repaired by the Denoiser."""
        repair = partial(self.denoiser, mask=visual.mask)
        return self.site.finish(self.adapter, visual, gated, repair)

    def attention_logits(self, visual: VisualTokens, gates: Tensor) -> Tensor | None:
        """Return what is added to the attention logits of real tokens as keys, [M], or None."""
        if not self.soft_removal:
            return None
        return visual.real(gates).clamp(min=SMALLEST_GATE).log()

    def with_blank_image(self, batch: TrainBatch) -> TrainBatch:
        """Return text-only rows behind a row with a blank image and no answer."""
        image = Image.new("RGB", (64, 64))
        ids = self.vlm.inputs([[image]], [self.vlm.image_mark])["input_ids"][0]
        count = int((ids == self.adapter.image_token_id).sum())
        pixels: dict[str, Any] = self.vlm.pixel_inputs([image])
        token = self.adapter.image_token_id
        blank = behind_blank_row(batch.on_host, pixels, count, token)
        return blank.to(batch.input_ids.device)


def behind_blank_row(
    batch: TrainBatch, pixels: dict[str, Tensor], num_tokens: int, image_token_id: int
) -> TrainBatch:
    """Return the text-only rows of a batch behind a row of placeholders without an answer.

    Args:
        batch: rows without images, [B, T].
        pixels: image encoder's arguments for one image.
        num_tokens: N, its visual tokens.
        image_token_id: the placeholder.
    """
    length = max(num_tokens, batch.input_ids.shape[1])

    def stacked(rows: Tensor, first: Tensor, padding: int) -> Tensor:
        first = F.pad(first, (0, length - num_tokens), value=padding)
        rest = F.pad(rows, (0, length - rows.shape[1]), value=padding)
        return torch.cat([first[None].to(rest), rest])

    ids = torch.full((num_tokens,), image_token_id)
    return TrainBatch(
        stacked(batch.input_ids, ids, 0),
        stacked(batch.labels, torch.full_like(ids, IGNORED_LABEL), IGNORED_LABEL),
        stacked(batch.position_ids, torch.arange(num_tokens), 0),
        stacked(batch.segments, torch.full_like(ids, PREFIX_SEGMENT), PADDING_SEGMENT),
        pixels,
        [num_tokens],
        torch.zeros(1, dtype=torch.long, device=batch.input_ids.device),
    )
