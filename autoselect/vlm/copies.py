"""Copies of a prompt, which `generate` makes for beams and samples, and the order of their images.

transformers encodes images once and repeats the features. Each copy of a prompt with the images A
and B needs both: A, B, A, B. Some model classes repeat image by image instead: A, A, B, B. Others
repeat nothing.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from autoselect.config import ConfigError

EXPAND = "_expand_multimodal_outputs"


def repeats_each_image(model: Any) -> bool:
    """Return True if the model repeats features image by image; it is asked with two images."""
    token = getattr(model.config, "image_token_id", None)
    if token is None or not hasattr(model, EXPAND):
        return False
    prompt = torch.full((1, 2), token)
    features = [torch.zeros(1, 1), torch.ones(1, 1)]
    two = SimpleNamespace(pooler_output=features, deepstack_features=None)
    found = getattr(model, EXPAND)(prompt, {"image": two}, expand_size=2)["image"].pooler_output
    return [int(entry) for entry in found] != [0, 1, 0, 1]


def check_copies(
    model: Any,
    ids: np.ndarray,
    token_ids: dict[str, int],
    entries: tuple[tuple[str, tuple[int, ...]], ...],
    copies: int,
) -> None:
    """Check that each copy of a prompt has the features of its own images.

    Args:
        model: the model.
        ids: prompts and their copies, [B, T].
        token_ids: placeholder of each modality.
        entries: visual tokens of each entry of the features, by modality.
        copies: how often the batch holds every prompt.

    Raises:
        ConfigError: the copies have no features; or a prompt has several images, and the model
            mixes them up.
    """
    name = type(model).__name__
    if any((ids == token_ids[kind]).sum() == copies * sum(sizes) for kind, sizes in entries):
        raise ConfigError(
            f"num_beams and num_return_sequences: transformers repeats the prompts of {name} and "
            "not their images, without a selector too; leave both at 1"
        )
    several = any(
        len(sizes) > (ids == token_ids[modality]).any(axis=1).sum() for modality, sizes in entries
    )
    if several and repeats_each_image(model):
        raise ConfigError(
            f"num_beams and num_return_sequences: transformers gives the copies of a prompt with "
            f"several images the wrong ones for {name}, without a selector too; leave both at 1, "
            "or give one image per prompt"
        )
