"""Frozen vision-language models on stock transformers: encode, prune, answer, loss."""

from autoselect.vlm.backbone import FrozenVLM, VisualTokens
from autoselect.vlm.batch import Collator, TrainBatch

__all__ = ["Collator", "FrozenVLM", "TrainBatch", "VisualTokens"]
