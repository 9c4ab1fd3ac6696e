"""Measure how much of the image uniform gates let through, with and without the Denoiser.

With every gate at K/N nothing is selected, yet each token still carries D/2 log2(1/(1 - K/N)) bits.
Answers from such tokens that beat blind guessing show what the budget fails to hold back, so a
training loss can fall without a better selection. The measure is ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from autoselect.config import ConfigError, GateKind, GateSite
from autoselect.evaluation.answers.answering import (
    BLIND,
    FULL,
    Answers,
    answer_sequences,
)
from autoselect.evaluation.answers.fixed_choices import ImageChoices, blind_choices, whole_choices
from autoselect.evaluation.asking.replies import texts_of
from autoselect.evaluation.samples import EvaluationSample, encode_samples
from autoselect.evaluation.scores.scoring import score_answers
from autoselect.method.denoiser import Denoiser
from autoselect.method.gating import HARD, GateSetting, gate_tokens
from autoselect.method.statistics import TokenStatistics
from autoselect.training.checkpoint import CheckpointStore
from autoselect.vlm.sites import SITES

GATED, REPAIRED = "without Denoiser", "with Denoiser"


@dataclass(frozen=True)
class TrainedGate:
    """The gate and the Denoiser at the end of a training run.

    Attributes:
        statistics: mean and standard deviation or covariance of the noise.
        site: where the gate is applied.
    """

    kind: GateKind
    temperature: float
    statistics: TokenStatistics
    denoiser: Denoiser | None
    site: GateSite = "after_projector"


def load_gate(run: Path | str, vlm: Any, selector: Mapping[str, Any]) -> TrainedGate:
    """Load the gate and the Denoiser of a training run's last checkpoint.

    Args:
        run: output folder of the training run, with `checkpoints`.
        selector: metadata of the selector that it trained.

    Raises:
        ConfigError: the checkpoint is missing, or it trained another selector or gated another
            number of channels.
    """
    state = CheckpointStore(Path(run) / "checkpoints").load()
    if state is None:
        raise ConfigError(f"run={run} has no checkpoints; give the output folder of a training run")
    state.check_made(selector, f"run={run}")
    config = state.train_config()
    statistics = TokenStatistics.from_tensors(state.statistics)
    blank = vlm.encode_images([Image.new("RGB", (64, 64))], config.gate.site)
    channels = blank.gated.shape[-1]
    if len(statistics.mean) != channels:
        raise ConfigError(
            f"run={run} gated tokens of {len(statistics.mean)} channels, those of this model have "
            f"{channels}; give the run of this model's selector"
        )
    denoiser = None
    if config.denoiser.num_layers:
        denoiser = Denoiser(blank.width, config.denoiser)
        denoiser.load_state_dict(state.trained.weights_of("denoiser"))
        denoiser.to(vlm.device).eval()
    gate = config.gate
    here = statistics.to(torch.device(vlm.device))
    return TrainedGate(gate.kind, gate.temperature_end, here, denoiser, gate.site)


@torch.inference_mode()
def leak(
    asked: Any,
    gate: TrainedGate,
    samples: Sequence[EvaluationSample],
    budget: int,
    max_new_tokens: int,
    images_per_batch: int = 32,
) -> dict[str, Any]:
    """Measure accuracy with every gate at K/N, with all tokens and with none.

    A straight-through gate is hard in the forward pass and has no uniform form, so both accuracies
    are None for it.

    Args:
        asked: an `AskedVLM` whose images have equally many tokens.

    Returns:
        `budget`, `gate` (K/N), mean accuracies `full`, `blind`, `without_denoiser` and
        `with_denoiser` (None without a Denoiser), and `excess` of each over blind.
    """
    answers: dict[str, Answers] = {}
    count = 0
    for start in range(0, len(samples), images_per_batch):
        chosen = list(samples[start : start + images_per_batch])
        encoded = asked.encode(chosen)
        visual = encode_samples(asked.vlm, chosen, gate.site)
        count = visual.tokens.shape[1]
        sequences: dict[str, ImageChoices | None] = {FULL: None, BLIND: blind_choices(encoded)}
        gated = uniformly_gated(gate, visual.gated, budget, start)
        for name, repair in repairs_of(gate).items():
            if gated is None:
                continue
            outputs = SITES[gate.site].finish(asked.vlm.adapter, visual, gated, repair)
            features, _ = asked.vlm.adapter.tokens(visual.blocks, outputs, later=True)
            sequences[name] = whole_choices(features)
        given = answer_sequences(asked, chosen, encoded, sequences, max_new_tokens)
        for name, replies in given.items():
            answers.setdefault(name, []).extend(texts_of(replies))
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


def repairs_of(gate: TrainedGate) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return what gated tokens go through: nothing, and the Denoiser if there is one."""
    found: dict[str, Callable[[Tensor], Tensor]] = {GATED: lambda tokens: tokens}
    if gate.denoiser is not None:
        found[REPAIRED] = gate.denoiser
    return found


def uniformly_gated(
    gate: TrainedGate, tokens: Tensor, budget: int, first_image: int = 0
) -> Tensor | None:
    """Return tokens behind gates of exactly K/N, or None if the gate has no uniform form.

    As in training, the gate covers deepstack features.

    Args:
        tokens: visual tokens at the site of the gate, [B, N, (1 + L) D].
        first_image: number of the first image, which seeds the noise.
    """
    if gate.kind in HARD:
        return None
    ids = torch.arange(first_image, first_image + len(tokens), device=tokens.device)
    scores = torch.zeros(tokens.shape[:2], device=tokens.device)
    setting = GateSetting(budget, gate.temperature, seed=0, step=0)
    return gate_tokens(gate.kind, tokens, scores, setting, gate.statistics, ids).tokens
