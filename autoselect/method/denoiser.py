"""The Denoiser: repairs gated tokens, each by itself, during training only.

Pre-norm transformer blocks with diagonal attention: token i attends to itself alone. With one
visible key the softmax is 1, so the attention is exactly `output(value(x))`, without query and key,
at a cost of O(N). If a token could see its neighbours, clean tokens would repair noisy ones, and
the budget would mean nothing. Source: AutoSelect (arXiv 2603.07135); the sizes are ours.

Dimension letters: B images, N tokens, D token width, H hidden channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from autoselect.config import DenoiserConfig


class DiagonalAttention(nn.Module):
    """Attention in which every token attends to itself only: `output(value(x))`."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, hidden_size)
        self.output = nn.Linear(hidden_size, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.value(tokens))


class DenoiserBlock(nn.Module):
    """Diagonal attention, then an MLP; both residual branches start at zero."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = DiagonalAttention(width, hidden_size)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden_size)
        self.mlp_out = nn.Linear(hidden_size, width)
        nn.init.zeros_(self.mlp_out.weight)
        nn.init.zeros_(self.mlp_out.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(tokens))))


class Denoiser(nn.Module):
    """Maps gated tokens [B, N, D] to tokens for the language model; starts as the identity."""

    def __init__(self, width: int, config: DenoiserConfig) -> None:
        super().__init__()
        self.width = width
        self.config = config
        self.blocks = nn.ModuleList(
            DenoiserBlock(width, config.hidden_size) for _ in range(config.num_layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return repaired tokens [B, N, D], computed in the parameters' dtype, in the tokens'."""
        if not self.blocks:
            return tokens
        repaired = tokens.to(next(self.parameters()).dtype)
        for block in self.blocks:
            repaired = block(repaired)
        return repaired.to(tokens.dtype)
