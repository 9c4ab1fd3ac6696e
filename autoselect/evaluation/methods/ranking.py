"""Baselines that score each token and keep the K largest scores."""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from autoselect.evaluation.methods.context import Kept, SelectionContext


def random_scores(keys: Sequence[str], count: int, seed: int = 0) -> Tensor:
    """Return uniform scores [B, count], on the CPU, from the seed and each row's key alone."""
    rows = []
    for key in keys:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{key}".encode()))
        rows.append(torch.rand(count, generator=generator))
    return torch.stack(rows)


def random_tokens(context: SelectionContext, budget: int) -> Kept:
    """Keep uniformly random tokens."""
    scores = random_scores(context.keys, context.tokens.shape[1], context.seed)
    return context.take(scores.to(context.tokens.device), budget)


def feature_norm(context: SelectionContext, budget: int) -> Kept:
    """Keep the tokens with the largest L2 norm."""
    return context.take(context.tokens.float().norm(dim=-1), budget)


def class_attention(context: SelectionContext, budget: int) -> Kept:
    """Keep the tokens that get most attention of the CLS token (FasterVLM, arXiv 2412.01818)."""
    return context.take(context.salience(), budget)


def llm_attention(context: SelectionContext, budget: int) -> Kept:
    """Keep the tokens with most attention of the prompt's last token in an early LLM layer.

    FastV (arXiv 2403.06764) removes the others after that layer, so its K is an average over the
    layers and cannot go below the share of the first ones. Here they are removed at the input, at
    exactly the budget of the other methods. The full forward pass that computes the attention is
    not counted, which favours this method.
    """
    assert context.llm_attention is not None
    return context.take(context.llm_attention, budget)
