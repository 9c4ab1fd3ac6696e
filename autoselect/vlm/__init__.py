"""Frozen vision-language models on stock transformers: encode, prune, answer, loss."""

from autoselect.vlm.adapter import VisualAdapter
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.families import Family, register_family
from autoselect.vlm.text.batch import Collator, TrainBatch

__all__ = [
    "Collator",
    "Family",
    "FrozenVLM",
    "TrainBatch",
    "VisualAdapter",
    "register_family",
]
