"""Baselines that give each token a score and keep the K largest."""

import zlib

import torch
from torch import Tensor

from autoselect.evaluation.methods.context import Kept, SelectionContext


def random_scores(context: SelectionContext) -> Tensor:
    """Uniform scores [B, N], a pure function of the seed and each row's key."""
    count = context.tokens.shape[1]
    rows = []
    for key in context.keys:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{context.seed}:{key}".encode()))
        rows.append(torch.rand(count, generator=generator))
    return torch.stack(rows).to(context.tokens.device)


def feature_norm(context: SelectionContext, budget: int) -> Kept:
    """Tokens with the largest L2 norm."""
    return context.take(context.tokens.float().norm(dim=-1), budget)


def class_attention(context: SelectionContext, budget: int) -> Kept:
    """Tokens to which the vision tower's CLS token attends most (FasterVLM, arXiv 2412.01818)."""
    assert context.class_attention is not None
    return context.take(context.class_attention, budget)


def llm_attention(context: SelectionContext, budget: int) -> Kept:
    """Tokens to which the prompt's last token attends most in an early LLM layer.

    FastV (arXiv 2403.06764) removes the others after that layer, so its K is an average over the
    layers and cannot go below the share of the first ones. Here they are removed at the input, at
    exactly the budget of the other methods; the full forward pass that the attention costs is not
    counted, which favours this method.
    """
    assert context.llm_attention is not None
    return context.take(context.llm_attention, budget)
