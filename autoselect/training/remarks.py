"""What a training tells in its log."""

import logging

from autoselect.data.loader import death_of_worker
from autoselect.files.atomic import DISK_FULL
from autoselect.ranks.heartbeat import lost_contact
from autoselect.ranks.judge import EXIT_RANK_LOST, RankLostError

logger = logging.getLogger(__name__)
LEAST_POLARISATION = 0.95
"""Share of the budget at the K best gates below which the end of training warns."""


def course(steps: int, batch_size: int, samples: int) -> str:
    """Return how often a training sees its data, as text."""
    epochs = steps * batch_size / samples
    shown = f"{epochs:.1f}" if epochs < 100 else f"{epochs:,.0f}"
    return f"{steps} steps x {batch_size} images = {shown} epochs of {samples} samples"


def warn_of_soft_gates(polarisation: float) -> None:
    """Warn if tokens that inference removes still came through the gates at the end."""
    if polarisation < LEAST_POLARISATION:
        logger.warning(
            "polarisation ends at %.3f, below %.2f: gates between 0 and 1 let through what "
            "inference removes; train for more steps, lower gate.temperature_end, or lower "
            "gate.anneal_fraction so that gates harden while the learning rate is high",
            polarisation,
            LEAST_POLARISATION,
        )


def report_smaller_images(smaller: int, images: int) -> None:
    """Log how many images were trained on with all their tokens."""
    if smaller:
        logger.info(
            "%d of %d images had fewer visual tokens than the budget of their step, and kept "
            "all of them",
            smaller,
            images,
        )


def summary(metrics: dict[str, float]) -> str:
    """Return the most important metrics as one line."""
    if "train/loss" not in metrics:
        return "nothing to train on"
    return (
        f"loss {metrics['train/loss']:.3f}, polarisation {metrics['train/polarisation']:.3f}, "
        f"budget error {metrics['train/budget_error_tokens']:.1e} tokens, "
        f"{metrics['train/tokens_per_s']:.0f} answer tokens/s"
    )


def cause_of_end(error: OSError | RuntimeError) -> tuple[str, int]:
    """Return what to tell users of lost ranks, a full disk or a killed worker, and the exit code.

    The text is empty for any other error.
    """
    if isinstance(error, RankLostError):
        return str(error), EXIT_RANK_LOST
    if lost_contact(error):
        return f"the other ranks were lost: {error}", EXIT_RANK_LOST
    if isinstance(error, OSError):
        full = error.errno in DISK_FULL
        told = f"{error}; free some space, then start again, and the run resumes" if full else ""
        return told, 1
    return death_of_worker(error), 1
