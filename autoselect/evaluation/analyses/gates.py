"""Compute the gates of a trained selector at temperatures of its training."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError, GateConfig, require
from autoselect.config.files import from_dict
from autoselect.evaluation.samples import EvaluationSample, encode_samples
from autoselect.method.gating import HARD, gate_scores
from autoselect.ops.soft_top_k import soft_top_k
from autoselect.tracking.history import metric_history

logger = logging.getLogger(__name__)
POLARISATION = "train/polarisation"


@dataclass(frozen=True)
class GateSample:
    """Gates of some images at one temperature.

    Attributes:
        gates: all gates, [M].
        polarisation: sum of the K largest gates of an image / K, mean over images.
    """

    temperature: float
    gates: Tensor
    polarisation: float


def trained_gate(selector: Any) -> GateConfig:
    """Return the settings of the gate that a selector was trained with.

    Raises:
        ConfigError: the selector does not have them, this version does not know them, or such gates
            are 0 or 1 at every temperature.
    """
    stored = selector.metadata.get("gate")
    require(
        stored is not None,
        "training.gate is missing in the selector's config.json, as in those of older versions, "
        "so the gates of its training are unknown; copy the group train.gate of the training's "
        "config.yaml there, or train again",
    )
    try:
        gate = from_dict(GateConfig, stored, "gate.")
    except ConfigError as error:
        raise ConfigError(f"training.gate in the selector's config.json: {error}") from error
    require(
        gate.kind not in HARD,
        f"gate.kind={gate.kind} of the training passes gates of 0 and 1 at every temperature; "
        "analyse a selector of another kind of gate",
    )
    return gate


def temperatures(gate: GateConfig) -> list[float]:
    """Return the first, the middle (geometric) and the last temperature of a training."""
    start, end = gate.temperature_start, gate.temperature_end
    return list(dict.fromkeys([start, math.sqrt(start * end), end]))


@torch.inference_mode()
def gate_samples(
    vlm: Any, selector: Any, samples: Sequence[EvaluationSample], budget: int
) -> list[GateSample]:
    """Return the gates of the selector's training for its final scores, at `temperatures`.

    Raises:
        ConfigError: see `trained_gate`.
    """
    gate = trained_gate(selector)
    visual = encode_samples(vlm, samples, selector.site)
    raw = selector.score(visual.tokens, visual.mask)
    scores = gate_scores(gate, raw, visual.tokens, budget, visual.mask)
    found = []
    for temperature in temperatures(gate):
        gates = soft_top_k(scores, budget, temperature, visual.mask)
        mass = gates.topk(budget, dim=-1).values.sum(dim=-1) / budget
        found.append(GateSample(temperature, gates.flatten().cpu(), float(mass.mean())))
    return found


def polarisation_course(run_id: str | None) -> list[tuple[int, float]]:
    """Return (step, polarisation) of a training run; empty, with a warning, if unknown."""
    course = metric_history(run_id, POLARISATION) if run_id else []
    if not course:
        why = f"this store has none for run {run_id}" if run_id else "it was not tracked"
        logger.warning("the course of the polarisation in training is not drawn: %s", why)
    return course
