"""How much of the image uniform gates let through, with and without the Denoiser.

With every gate at K/N nothing is selected, yet each token still carries D/2 log2(1/(1 - K/N)) bits.
What the VLM answers from such tokens above blind guessing is what the budget fails to hold back, so
a training loss can fall without a better selection. The measure is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError, GateKind, GateSite, TrainConfig
from autoselect.config.files import from_dict
from autoselect.evaluation.answers.answering import (
    BLIND,
    FULL,
    Answers,
    VisualSequence,
    answer_sequences,
)
from autoselect.evaluation.samples import EvaluationSample
from autoselect.evaluation.scores.scoring import score_answers
from autoselect.method.denoiser import Denoiser
from autoselect.method.gating import GateSetting, gate_tokens
from autoselect.method.statistics import TokenStatistics
from autoselect.training.checkpoint import CheckpointStore

GATED, REPAIRED = "without Denoiser", "with Denoiser"


@dataclass(frozen=True)
class TrainedGate:
    """What stood between the image and the language model at the end of a training run.

    Attributes:
        kind: formula of the gate.
        temperature: at the end of training.
        statistics: of the noise.
        denoiser: as trained; None for a run without one.
        site: of the gate.
    """

    kind: GateKind
    temperature: float
    statistics: TokenStatistics
    denoiser: Denoiser | None
    site: GateSite = "after_projector"


def load_gate(run: Path | str, vlm: Any) -> TrainedGate:
    """The gate and the Denoiser of a run's last checkpoint.

    Args:
        run: folder that training wrote, with `checkpoints`.
        vlm: the `FrozenVLM` that it was trained around.

    Raises:
        ConfigError: there is no checkpoint, or what it gated has another width than here.
    """
    state = CheckpointStore(Path(run) / "checkpoints").load()
    if state is None:
        raise ConfigError(f"run={run} has no checkpoints; give the output folder of a training run")
    config = from_dict(TrainConfig, state.config)
    statistics = TokenStatistics.from_tensors(state.statistics)
    channels = _gated_channels(vlm, config.gate.site)
    if len(statistics.mean) != channels:
        raise ConfigError(
            f"run={run} gated tokens of {len(statistics.mean)} channels, those of this model have "
            f"{channels}; give the run of this model's selector"
        )
    denoiser = None
    if config.denoiser.num_layers:
        prefix = "denoiser."
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.trained.weights.items()
            if name.startswith(prefix)
        }
        denoiser = Denoiser(vlm.width_at(config.gate.site), config.denoiser)
        denoiser.load_state_dict(weights)
        denoiser.to(vlm.device).eval()
    gate = config.gate
    here = statistics.to(torch.device(vlm.device))
    return TrainedGate(gate.kind, gate.temperature_end, here, denoiser, gate.site)


def _gated_channels(vlm: Any, site: GateSite) -> int:
    """Channels that a gate covers at a site, those for later layers included, of a blank image."""
    blank = vlm.pixel_inputs([Image.new("RGB", (64, 64))])
    return vlm.encode(blank, before_projector=site == "before_projector").at(site).shape[-1]


@torch.inference_mode()
def leak(
    vlm: Any,
    gate: TrainedGate,
    samples: Sequence[EvaluationSample],
    budget: int,
    max_new_tokens: int,
    images_per_batch: int = 32,
) -> dict[str, Any]:
    """Accuracy with every gate at K/N, beside that with all tokens and that with none.

    A straight-through gate is hard in the forward pass, so no uniform gate exists and both
    accuracies are None; soft removal is left out, since it weighs all tokens alike here.

    Args:
        vlm: a `FrozenVLM` whose prompts can be spliced.
        gate: of `load_gate`.
        samples: what is asked.
        budget: K.
        max_new_tokens: longest answer in tokens.
        images_per_batch: images encoded together.

    Returns:
        `budget`, `gate` (K/N), mean accuracies `full`, `blind`, `without_denoiser` and
        `with_denoiser` (None for a run without one), and `excess` of each over blind.
    """
    answers: dict[str, Answers] = {}
    count = 0
    for start in range(0, len(samples), images_per_batch):
        chosen = list(samples[start : start + images_per_batch])
        pixels = vlm.pixel_inputs([sample.image for sample in chosen])
        visual = vlm.encode(pixels, before_projector=gate.site == "before_projector")
        tokens = visual.tokens
        count = tokens.shape[1]
        nowhere = torch.zeros(len(tokens), 0, dtype=torch.long, device=tokens.device)
        sequences: dict[str, VisualSequence] = {FULL: (tokens, None)}
        sequences[BLIND] = (tokens[:, :0], nowhere)
        for name, gated in uniformly_gated(gate, visual.at(gate.site), budget, start).items():
            sequences[name] = (vlm.finished(gated, gate.site), None)
        for name, texts in answer_sequences(vlm, chosen, sequences, max_new_tokens).items():
            answers.setdefault(name, []).extend(texts)
    mean = {name: score_answers(samples, texts).mean() for name, texts in answers.items()}
    bare, repaired, blind = mean.get(GATED), mean.get(REPAIRED), mean[BLIND]
    return {
        "budget": budget,
        "gate": budget / count,
        "images": len(samples),
        "full": mean[FULL],
        "blind": blind,
        "without_denoiser": bare,
        "with_denoiser": repaired,
        "excess": {
            "without_denoiser": None if bare is None else bare - blind,
            "with_denoiser": None if repaired is None else repaired - blind,
        },
    }


def uniformly_gated(
    gate: TrainedGate, tokens: Tensor, budget: int, first_image: int = 0
) -> dict[str, Tensor]:
    """Tokens behind gates of exactly K/N each, and the same after the Denoiser.

    As in training the gate covers what a family adds in later layers; the Denoiser leaves it.

    Args:
        gate: of `load_gate`.
        tokens: of some images at the site of the gate, [B, N, (1 + L) D].
        budget: K.
        first_image: number of the first one, which the noise depends on.
    """
    if gate.kind == "straight_through":
        return {}
    ids = torch.arange(first_image, first_image + len(tokens), device=tokens.device)
    scores = torch.zeros(tokens.shape[:2], device=tokens.device)
    setting = GateSetting(budget, gate.temperature, seed=0, step=0)
    gated = gate_tokens(gate.kind, tokens, scores, setting, gate.statistics, ids)
    found = {GATED: gated.tokens}
    if gate.denoiser is not None:
        width = gate.denoiser.width
        own, later = gated.tokens[..., :width], gated.tokens[..., width:]
        found[REPAIRED] = torch.cat([gate.denoiser(own), later], dim=-1)
    return found
