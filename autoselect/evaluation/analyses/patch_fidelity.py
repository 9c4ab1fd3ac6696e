"""Figure 5 as the paper runs it: patches of an image classifier, removed or replaced by noise.

Both act after patch embedding and before the encoder, under identical random score maps: hard
removal takes the patches out of the sequence, and the noise gate (gates 0 and 1, as at the end of
training) puts noise in their place. The class token stays. The paper's figure has 12, 25, 49, 98,
147 and 196 of 196 patches of a ViT on ImageNet-1K.

Dimension letters: B images, N patches, P class and register tokens, C channels, K patches that
stay.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from autoselect.evaluation.analyses.classifier import LabelledImages
from autoselect.evaluation.analyses.fidelity import (
    CALIBRATION_IMAGES,
    COVARIANCE,
    NOISE,
    NOISE_RANK,
    REMOVAL,
)
from autoselect.evaluation.methods.ranking import random_scores
from autoselect.evaluation.scores.intervals import Resampling, interval
from autoselect.method.statistics import calibrate
from autoselect.ops.hard_top_k import hard_top_k
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import noise_gate
from autoselect.vlm.image_classifier import (
    Preprocess,
    embedding_layer,
    extra_tokens,
    grid,
    only_patches,
)

TREATMENTS = (REMOVAL, NOISE, COVARIANCE)
TOP = 5
Rewrite = Callable[[Tensor], Tensor]


@contextmanager
def rewritten(classifier: Any, rewrite: Rewrite) -> Iterator[None]:
    """Let the classifier see `rewrite` of its patch embeddings [B, N, C] inside the block."""
    extra = extra_tokens(classifier)

    def put(_layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :extra], rewrite(output[:, extra:])], dim=1)

    with embedding_layer(classifier).register_forward_hook(put):
        yield


def _ranks(logits: Tensor, truth: Tensor) -> Tensor:
    """Return how many classes are rated above the true one, [B]."""
    own = logits.gather(1, truth[:, None])
    return (logits > own).sum(dim=1)


@torch.inference_mode()
def patch_statistics(
    classifier: Any, pixels: Iterable[Tensor]
) -> tuple[NoiseStatistics, NoiseStatistics]:
    """Return the statistics of patch embeddings per channel, and with their covariance."""
    seen: list[Tensor] = []

    def note(patches: Tensor) -> Tensor:
        seen.append(patches.flatten(0, 1).float())
        return patches

    with rewritten(classifier, note):
        for own in pixels:
            classifier(own)
    return calibrate(seen, None), calibrate(seen, NOISE_RANK)


@torch.inference_mode()
def patch_fidelity(
    classifier: Any,
    preprocess: Preprocess,
    data: LabelledImages,
    budgets: Sequence[int],
    images_per_batch: int = 32,
) -> dict[str, Any]:
    """Compare hard removal with noise gating on an image classifier.

    Args:
        classifier: a ViT-like transformers image classifier.
        preprocess: turns images into pixel values.
        data: images and classes; without labels, the prediction with all patches is the truth.
        budgets: K, patches that stay.

    Returns:
        `budgets`; `full` accuracy; `curves` (top-1 by treatment) and `top5`; `gaps` (noise minus
        removal in top-1 at each budget, with its paired 95 % interval); `mean_gap`, the mean of
        their absolute values; `labels`, `images` and the `grid`.
    """
    images = data.images
    starts = range(0, len(images), images_per_batch)

    def pixels_from(start: int) -> Tensor:
        batch = list(images[start : start + images_per_batch])
        return preprocess(batch).to(classifier.device)

    first = starts[: -(-CALIBRATION_IMAGES // images_per_batch)]
    channel, covariance = patch_statistics(classifier, map(pixels_from, first))
    rows, columns = grid(classifier, pixels_from(0))
    places: dict[str, list[Tensor]] = {}
    for start in starts:
        pixels = pixels_from(start)
        whole = classifier(pixels).logits
        truth = whole.argmax(dim=-1)
        if data.labels is not None:
            own = data.labels[start : start + images_per_batch]
            truth = torch.tensor(own, device=whole.device)
        ids = torch.arange(start, start + len(pixels), device=whole.device)
        keys = [str(number) for number in ids.tolist()]
        scores = random_scores(keys, rows * columns).to(whole.device)

        def note(name: str, pixels: Tensor = pixels, truth: Tensor = truth) -> None:
            ranks = _ranks(classifier(pixels).logits.float(), truth)
            places.setdefault(name, []).append(ranks.cpu())

        note("full")
        for budget in budgets:
            kept = hard_top_k(scores, budget)
            with only_patches(classifier, kept):
                note(f"{REMOVAL}@{budget}")
            gates = torch.zeros_like(scores).scatter(1, kept, 1.0)
            key = NoiseKey(0, 0, ids)
            for name, statistics in ((NOISE, channel), (COVARIANCE, covariance)):
                mixed = _noisy(gates, statistics, key)
                with rewritten(classifier, mixed):
                    note(f"{name}@{budget}")
    return _compared({name: torch.cat(own) for name, own in places.items()}, budgets) | {
        "labels": data.source,
        "images": len(images),
        "grid": [rows, columns],
    }


def _noisy(gates: Tensor, statistics: NoiseStatistics, key: NoiseKey) -> Rewrite:
    return lambda patches: noise_gate(patches, gates, statistics, key)


def _compared(places: dict[str, Tensor], budgets: Sequence[int]) -> dict[str, Any]:
    def accuracy(name: str, most: int) -> float:
        return float((places[name] < most).float().mean())

    draws = Resampling.of(len(places["full"]))
    gaps: list[dict[str, Any]] = []
    for budget in budgets:
        noise, removal = (
            (places[f"{name}@{budget}"] < 1).double().numpy() for name in (NOISE, REMOVAL)
        )
        low, high = interval(draws.weights @ (noise - removal) / len(noise))
        gap = float((noise - removal).mean())
        gaps.append({"budget": budget, "gap": gap, "ci95": [low, high]})
    top1, top5 = (
        {name: [accuracy(f"{name}@{b}", most) for b in budgets] for name in TREATMENTS}
        for most in (1, TOP)
    )
    return {
        "budgets": list(budgets),
        "full": {"top1": accuracy("full", 1), "top5": accuracy("full", TOP)},
        "curves": top1,
        "top5": top5,
        "gaps": gaps,
        "mean_gap": sum(abs(row["gap"]) for row in gaps) / len(gaps),
    }
