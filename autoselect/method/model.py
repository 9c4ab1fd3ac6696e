"""AutoSelect = frozen VLM + Scorer + Denoiser: one training step from pixels to loss.

    features = vlm.encode(images)                       no gradient
    scores   = scorer(features)
    gated    = soft_top_k_noise_gate(features, scores, K, tau, noise key)    others: gating.py
    inputs   = denoiser(gated)
    loss     = next-token loss on the answers           gradient flows through the frozen LLM

Dimension letters: I images, N visual tokens, D width, L later layers with features of their own, P
width before the projector, B rows, T text tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from autoselect.config import TrainConfig
from autoselect.method.denoiser import Denoiser
from autoselect.method.gating import Gated, GateSetting, gate_tokens
from autoselect.method.scorer import Scorer, standardise
from autoselect.method.statistics import TokenStatistics
from autoselect.vlm.backbone import FrozenVLM, VisualTokens
from autoselect.vlm.forward import answer_loss
from autoselect.vlm.text.batch import IGNORED_LABEL, TrainBatch

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
    """

    loss_sum: Tensor
    answer_tokens: int
    gate_sum: Tensor
    top_gate_sum: Tensor
    wanted_sum: int
    images: int


class AutoSelect(nn.Module):
    """The trained Scorer and Denoiser around a frozen VLM.

    Args:
        vlm: the frozen backbone; none of its parameters gets a gradient.
        config: of the run.
        statistics: of the visual tokens over the data set.
    """

    def __init__(self, vlm: FrozenVLM, config: TrainConfig, statistics: TokenStatistics) -> None:
        super().__init__()
        self.vlm = vlm
        self.frozen = vlm.model
        self.standardise = config.gate.standardise
        self.gate_kind = config.gate.kind
        self.soft_removal = config.gate.soft_removal
        self.activation_checkpointing = config.activation_checkpointing
        self.scorer = Scorer(vlm.width, config.scorer)
        self.site = config.gate.site
        # Statistics know the width before the projector; the tower may be split over ranks here.
        self.width = vlm.width if self.site == "after_projector" else len(statistics.mean)
        self.denoiser = Denoiser(self.width, config.denoiser)
        self.statistics = statistics

    def train(self, mode: bool = True) -> "AutoSelect":
        """Only Scorer and Denoiser change mode; the frozen VLM stays in eval mode."""
        super().train(mode)
        self.frozen.eval()
        return self

    def encode(self, pixels: dict[str, Tensor]) -> VisualTokens:
        """Visual tokens, and what is gated."""
        return self.vlm.encode(pixels, before_projector=self.site == "before_projector")

    def gate(self, visual: VisualTokens, setting: GateSetting, image_ids: Tensor) -> Gated:
        """Gated tokens [I, N, (1 + L) D] and gates [I, N]; [I, N, P] before the projector."""
        scores = self.scorer(visual.tokens, visual.mask)
        if self.standardise:
            scores = standardise(scores, visual.mask)
        return gate_tokens(
            self.gate_kind,
            visual.at(self.site),
            scores.float(),
            setting,
            self.statistics,
            image_ids,
            visual.mask,
        )

    def repair(self, gated: Gated) -> Tensor:
        """What the language model is given, [I, N, (1 + L) D]; later layers get what was gated."""
        tokens, later = gated.tokens[..., : self.width], gated.tokens[..., self.width :]
        repaired = self.vlm.finished(self.denoiser(tokens), self.site)
        return torch.cat([repaired, later], dim=-1) if later.shape[-1] else repaired

    def forward(self, batch: TrainBatch, setting: GateSetting) -> StepOutput:
        """Loss and gate statistics of one micro-batch."""
        if batch.num_images == 0:
            return self._without_images(batch, setting)
        visual = self.encode(batch.pixels)
        gated = self.gate(visual, setting, batch.image_ids)
        gates = gated.gates
        repaired = self.repair(gated)
        real = repaired if visual.mask is None else repaired[visual.mask]
        loss_sum = answer_loss(
            self.vlm,
            batch,
            real.flatten(0, -2),
            self.activation_checkpointing,
            self.log_weights(visual, gates) if self.soft_removal else None,
            visual.output,
        )
        most = min(setting.token_budget, gates.shape[1])
        if visual.mask is None:
            wanted = most * batch.num_images
        else:
            wanted = int(visual.mask.sum(dim=1).clamp(max=most).sum())
        return StepOutput(
            loss_sum,
            batch.num_answer_tokens,
            gates.detach().sum(),
            gates.detach().topk(most, dim=-1).values.sum(),
            wanted,
            batch.num_images,
        )

    @staticmethod
    def log_weights(visual: VisualTokens, gates: Tensor) -> Tensor:
        """Logarithms of the gates of real tokens, in order of appearance, [M]."""
        real = gates.flatten() if visual.mask is None else gates[visual.mask]
        return real.clamp(min=SMALLEST_GATE).log()

    def _without_images(self, batch: TrainBatch, setting: GateSetting) -> StepOutput:
        """Text-only rows: nothing to select, but every rank takes part in the step.

        A row of its own with a blank image goes through all parts and counts for nothing: under
        ZeRO-3 each of them is gathered from all ranks when it is used, and a rank that leaves one
        out makes them wait.
        """
        blank = self.vlm.pixel_inputs([Image.new("RGB", (64, 64))])
        visual = self.encode(blank)
        nobody = torch.zeros(1, dtype=torch.long, device=visual.tokens.device)
        tokens = self.repair(self.gate(visual, setting, nobody))[0]
        rows = behind_blank_row(batch, len(tokens), self.vlm.image_token_id)
        recompute = self.activation_checkpointing
        loss_sum = answer_loss(self.vlm, rows, tokens, recompute, output=visual.output)
        zero = torch.zeros((), device=loss_sum.device)
        return StepOutput(loss_sum, batch.num_answer_tokens, zero, zero, 0, 0)


def behind_blank_row(batch: TrainBatch, num_tokens: int, image_token_id: int) -> TrainBatch:
    """The text-only rows of a batch behind a row of `num_tokens` placeholders without an answer."""
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
        stacked(batch.segments, torch.full_like(ids, -1), -2),
        {},
        batch.image_ids,
    )
