"""Check for `autoselect doctor` of how often a training would see its data."""

from __future__ import annotations

from autoselect.config import ConfigError
from autoselect.data.paths import expand
from autoselect.data.shards import ShardSet
from autoselect.preflight.finding import Finding, Subject
from autoselect.preflight.shards_check import without_index
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.resources import REFERENCE
from autoselect.training.remarks import course

MOST_EPOCHS = 20
"""Epochs above which the check warns.

The recipes train for about one epoch and the tutorial's ten steps for five. More than 20 are most
likely the `steps` of a recipe that was made for more data.
"""


def check_epochs(subject: Subject) -> Finding:
    """Compare the samples that the steps take with those that there are."""
    config, batch = subject.config, subject.deepspeed.total_batch
    samples = _samples(config.data.train_shards)
    if samples is None:
        found = "not counted: the shards or their indexes cannot be read"
        return Finding("epochs", "warn", found, "correct the shards, then repeat")
    found = course(config.steps, batch, samples)
    if config.steps * batch <= MOST_EPOCHS * samples:
        return Finding("epochs", "ok", found)
    most = max(1, MOST_EPOCHS * samples // batch)
    fix = f"lower `steps` to {most} or fewer ({MOST_EPOCHS} epochs), and `save_every` below that"
    return Finding("epochs", "warn", found, fix)


def _samples(pattern: str) -> int | None:
    """Return the number of training samples; None if it is unknown. No index is built."""
    if pattern == REFERENCE:
        return ReferenceData().train
    try:
        named = expand(pattern)
        return None if without_index(named) else len(ShardSet.open(named))
    except ConfigError:
        return None
