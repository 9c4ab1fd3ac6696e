"""Choosing what a method keeps of each image; images of one size are handled together.

Dimension letters: N visual tokens of one image, K that stay, D width, L later layers (deepstack).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.asking.asked_vlm import AskedVLM, Encoded, ImageTokens, Prompts
from autoselect.evaluation.methods.context import PATCHES, SelectionContext
from autoselect.evaluation.methods.registry import Method


@dataclass(frozen=True)
class Choice:
    """What stays of one image.

    Attributes:
        positions: positions that stay, ascending, int64, [K].
        features: features of the whole image, [N, (1 + L) D]; methods that merge tokens, or run the
            encoder on some patches, change them at `positions`.
    """

    positions: Tensor
    features: Tensor


def choose(
    method: Method,
    images: Sequence[ImageTokens],
    budget: Callable[[int], int],
    seed: int = 0,
    questions: Sequence[Tensor] | None = None,
    attention: Sequence[Tensor] | None = None,
) -> list[Choice]:
    """Return what a method keeps of each image.

    Args:
        method: the method.
        images: encoded images.
        budget: K as a function of N, for images of several sizes.
        seed: seed of random choices.
        questions: mean embedding of the text around each image, [D] each.
        attention: attention of the language model to each image, [N] each.
    """
    groups: dict[tuple, list[int]] = {}
    for number, image in enumerate(images):
        groups.setdefault((len(image), image.grid), []).append(number)
    found: dict[int, Choice] = {}
    for (count, _), members in groups.items():
        context = replace(context_of([images[number] for number in members]), seed=seed)
        if questions is not None:
            context = replace(context, question=torch.stack([questions[n] for n in members]))
        if attention is not None:
            context = replace(context, llm_attention=torch.stack([attention[n] for n in members]))
        kept = method.keep(context, budget(count))
        for row, number in enumerate(members):
            features = images[number].features
            if method.merges or method.site == PATCHES:
                features = features.clone()
                features[kept.positions[row], : images[number].width] = kept.tokens[row]
            found[number] = Choice(kept.positions[row], features)
    return [found[number] for number in range(len(images))]


def pruned_call(
    asked: AskedVLM, prompts: Prompts, encoded: Encoded, chosen: Sequence[Choice] | None
) -> tuple[dict[str, Any], list[Tensor] | None]:
    """Return the arguments of a call, and the positions that stay of every image.

    `chosen` is what stays of each image of the prompts; None, as the second result, for all.
    """
    if chosen is None:
        return asked.call(prompts, encoded), None
    call = asked.call(prompts, encoded, [choice.features for choice in chosen])
    return call, [choice.positions for choice in chosen]


def context_of(images: Sequence[ImageTokens]) -> SelectionContext:
    """Return images of equal size as what a method may look at."""
    attention = [image.class_attention for image in images]
    known = [own for own in attention if own is not None]
    return SelectionContext(
        tokens=torch.stack([image.tokens for image in images]),
        keys=tuple(image.key for image in images),
        grid=images[0].grid,
        class_attention=torch.stack(known) if len(known) == len(images) else None,
        boxes=tuple(image.boxes for image in images) if all(i.boxes for i in images) else None,
        at_site={
            site: torch.stack([image.at_site[site] for image in images])
            for site in images[0].at_site
        },
        onward=images[0].onward,
    )
