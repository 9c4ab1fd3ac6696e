"""What the model sees of images without a method: nothing, everything, or another image."""

import torch
from torch import Tensor

from autoselect.evaluation.asking.asked_vlm import Encoded
from autoselect.evaluation.methods.choice import Choice

ImageChoices = list[list[Choice]]
"""What stays of every image of every sample."""


def nothing(tokens: Tensor) -> Tensor:
    """Return the positions of a blind answer: none, int64, [0]."""
    return torch.zeros(0, dtype=torch.long, device=tokens.device)


def other_choices(encoded: Encoded, others: Encoded) -> ImageChoices:
    """Return all tokens of other images in place of the samples' own.

    If an image has another number of tokens, the other's are repeated or thinned out evenly; if a
    sample has more images than the other, the other's images are repeated.
    """
    found = []
    for own, strange in zip(encoded.images, others.images, strict=True):
        row = []
        for place, image in enumerate(own):
            features = strange[place % len(strange)].features
            steps = torch.arange(len(image), device=features.device) * len(features) // len(image)
            everything = torch.arange(len(image), device=features.device)
            row.append(Choice(everything, features[steps]))
        found.append(row)
    return found


def blind_choices(encoded: Encoded) -> ImageChoices:
    """Return what a blind answer sees: no token of any image."""
    return [
        [Choice(nothing(image.features), image.features) for image in own] for own in encoded.images
    ]


def whole_choices(features: Tensor) -> ImageChoices:
    """Keep all tokens of samples of one image each, replaced by `features` [B, N, C]."""
    everything = torch.arange(features.shape[1], device=features.device)
    return [[Choice(everything, own)] for own in features]
