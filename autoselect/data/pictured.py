"""Tell which samples and steps have a picture, from the indexes alone, before a run begins."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoselect.config import ConfigError
from autoselect.data.order import stream_slice
from autoselect.data.record import is_image
from autoselect.data.shards import ShardSet

logger = logging.getLogger(__name__)


def pictured(shards: ShardSet) -> NDArray[np.bool_]:
    """Return whether each sample has an image, [N]; no sample is read."""
    found = (
        any(is_image(entry.suffix) for entry in shards.locate(sample_id)[2])
        for sample_id in range(len(shards))
    )
    return np.fromiter(found, dtype=bool, count=len(shards))


def steps_without_pictures(
    has_picture: NDArray[np.bool_], seed: int, batch_size: int, steps: int
) -> Sequence[int]:
    """Return the steps, of 0..steps-1, whose global batch of `batch_size` holds no picture."""
    ids = stream_slice(len(has_picture), seed, 0, steps * batch_size)
    used = has_picture[ids].reshape(steps, batch_size).any(axis=1)
    return [int(step) for step in np.flatnonzero(~used)]


def report_pictures(shards: ShardSet, seed: int, batch_size: int, steps: int) -> None:
    """Log how many samples have a picture, and warn of steps that would train nothing.

    Steps beyond the second epoch are not looked at.

    Raises:
        ConfigError: no sample has a picture.
    """
    has_picture = pictured(shards)
    count, total = int(has_picture.sum()), len(has_picture)
    if count == 0:
        raise ConfigError(
            f"data.train_shards: none of {total} samples has a picture, so no step would train "
            "anything; convert rows that name their pictures under 'image'"
        )
    if count < total:
        logger.warning("%d of %d samples have a picture; the others train nothing", count, total)
    if shards.unanswered:
        logger.warning(
            "%d samples have a picture but no answer; each that is due counts against "
            "data.quarantine_budget",
            shards.unanswered,
        )
    looked_at = min(steps, -(-2 * total // batch_size))
    if empty := steps_without_pictures(has_picture, seed, batch_size, looked_at):
        logger.warning(
            "%d of the first %d steps will train nothing, the first of them step %d: no sample of "
            "their batches has a picture",
            len(empty),
            looked_at,
            empty[0] + 1,
        )
