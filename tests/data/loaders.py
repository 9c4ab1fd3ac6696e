"""Loaders by the fields of their plan."""

from autoselect.data.loader import BatchPlan, Loader


def make_loader(shards, collate, seed, micro_batch, *, workers=0, quarantine=None, **plan):
    return Loader(shards, collate, seed, BatchPlan(micro_batch, **plan), workers, quarantine)
