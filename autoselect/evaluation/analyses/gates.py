"""Compute the gates of a trained selector at several training temperatures."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.samples import EvaluationSample, encode_samples
from autoselect.method.scorer import standardise
from autoselect.ops.soft_top_k import soft_top_k
from autoselect.tracking.history import metric_history

logger = logging.getLogger(__name__)
POLARISATION = "train/polarisation"

TEMPERATURES = (0.5, 0.1, 0.02)


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


@torch.inference_mode()
def gate_samples(
    vlm: Any,
    selector: Any,
    samples: Sequence[EvaluationSample],
    budget: int,
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[GateSample]:
    """Return the gates that training would have used if it had ended at each temperature.

    Args:
        temperatures: temperatures of the soft top-K, in standard deviations of the scores.
    """
    visual = encode_samples(vlm, samples, selector.site)
    scores = standardise(selector.score(visual.tokens, visual.mask).float(), visual.mask)
    found = []
    for temperature in temperatures:
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
