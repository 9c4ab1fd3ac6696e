"""Frozen vision-language models on stock transformers: encode, prune, answer, loss."""

from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import Collator, TrainBatch
from autoselect.vlm.families import Family, register_family

__all__ = [
    "Collator",
    "Family",
    "FrozenVLM",
    "TrainBatch",
    "VisualAdapter",
    "register_family",
]
