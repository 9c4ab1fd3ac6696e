"""The Denoiser: repairs gated tokens, each by itself, during training only.

Pre-norm transformer blocks with diagonal attention: token i attends to itself alone. With one
visible key the softmax is 1, so the attention is exactly `output(value(x))`, without query and key,
at a cost of O(N). If a token could see its neighbours, clean tokens would repair noisy ones, and
the budget would mean nothing. Source: AutoSelect (arXiv 2603.07135); the sizes are ours.
`denoiser.attention=global` lets tokens see each other, to measure that leak.

Dimension letters: B images, N tokens, D token width, H hidden channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from autoselect.config import DenoiserAttention, DenoiserConfig

HEAD_SIZE = 64


class DiagonalAttention(nn.Module):
    """Attention in which every token attends to itself only: `output(value(x))`."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, hidden_size)
        self.output = nn.Linear(hidden_size, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor, _mask: Tensor | None = None) -> Tensor:
        return self.output(self.value(tokens))


class GlobalAttention(DiagonalAttention):
    """Attention in which every token attends to all tokens of its image, in heads of 64 channels.

    If H is not a multiple of 64, there is one head.
    """

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__(width, hidden_size)
        self.query_key = nn.Linear(width, 2 * hidden_size)
        self.num_heads = 1 if hidden_size % HEAD_SIZE else hidden_size // HEAD_SIZE

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        parts = (*self.query_key(tokens).chunk(2, dim=-1), self.value(tokens))
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts
        )
        visible = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.output(mixed.transpose(1, 2).flatten(2))


class DenoiserBlock(nn.Module):
    """Attention, then an MLP; both residual branches start at zero."""

    def __init__(self, width: int, hidden_size: int, attention: DenoiserAttention) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        kind = GlobalAttention if attention == "global" else DiagonalAttention
        self.attention = kind(width, hidden_size)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden_size)
        self.mlp_out = nn.Linear(hidden_size, width)
        nn.init.zeros_(self.mlp_out.weight)
        nn.init.zeros_(self.mlp_out.bias)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens), mask)
        return tokens + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(tokens))))


class Denoiser(nn.Module):
    """Maps gated tokens [B, N, D] to tokens for the language model; starts as the identity."""

    def __init__(self, width: int, config: DenoiserConfig) -> None:
        super().__init__()
        self.width = width
        self.config = config
        self.blocks = nn.ModuleList(
            DenoiserBlock(width, config.hidden_size, config.attention)
            for _ in range(config.num_layers)
        )

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return repaired tokens [B, N, D], computed in the parameters' dtype, in the tokens'.

        `mask` is true at real tokens, [B, N].
        """
        if not self.blocks:
            return tokens
        repaired = tokens.to(next(self.parameters()).dtype)
        for block in self.blocks:
            repaired = block(repaired, mask)
        return repaired.to(tokens.dtype)
