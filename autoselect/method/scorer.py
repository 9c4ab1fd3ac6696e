"""The Scorer: rates how much each visual token matters, given all other tokens of its image.

LayerNorm, a projection to a few channels, bidirectional transformer blocks, one score per token.
Source: AutoSelect (arXiv 2603.07135); the sizes are ours.

Dimension letters: B images, N tokens, D token width, H hidden channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoselect.config import ScorerConfig
from autoselect.ops.autocast import without_autocast


class ScorerBlock(nn.Module):
    """Pre-norm block: attention over all tokens of the image, then an MLP."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp_in = nn.Linear(hidden_size, 2 * hidden_size)
        self.mlp_out = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Update `hidden` [B, N, H]; `mask` is true at real tokens, [B, N]."""
        batch, count, width = hidden.shape
        heads = self.query_key_value(self.attention_norm(hidden))
        query, key, value = heads.view(
            batch, count, 3, self.num_heads, width // self.num_heads
        ).permute(2, 0, 3, 1, 4)
        visible = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        hidden = hidden + self.attention_output(mixed.transpose(1, 2).reshape(batch, count, width))
        return hidden + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden))))


class Scorer(nn.Module):
    """Maps visual tokens [B, N, D] to importance logits [B, N]."""

    def __init__(self, width: int, config: ScorerConfig) -> None:
        super().__init__()
        self.width = width
        self.config = config
        self.token_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.hidden_size)
        self.blocks = nn.ModuleList(
            ScorerBlock(config.hidden_size, config.num_heads) for _ in range(config.num_layers)
        )
        self.score_norm = nn.LayerNorm(config.hidden_size)
        self.score = nn.Linear(config.hidden_size, 1)
        self._fitted: dict[tuple[torch.device, torch.dtype], FlatScorer] = {}
        self._weights: tuple[Tensor, ...] = ()
        self._versions: list[int] = []

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return scores [B, N] of tokens [B, N, D]; `mask` is true at real tokens, [B, N]."""
        hidden = self.projection(self.token_norm(tokens.to(self.projection.weight.dtype)))
        for block in self.blocks:
            hidden = block(hidden, mask)
        with without_autocast(tokens.device):
            hidden = self.score_norm(hidden.to(self.score.weight.dtype))
            return self.score(hidden).squeeze(-1)

    @torch.no_grad()
    def infer(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what `forward` returns, in float32, for inference in the dtype of the tokens.

        `torch.autocast` does not change it.
        """
        with without_autocast(tokens.device):
            return self.fitted(tokens)(tokens, mask).float()

    def fitted(self, tokens: Tensor) -> "FlatScorer":
        """Return the Scorer on the device and in the dtype of `tokens`, for inference.

        It is made once and used again until a weight is written, loaded, moved or trained; under
        torch.compile it is part of the graph. A write through `.data`, or to a weight made in
        inference mode, leaves no trace: call `train()` after it. The last layer, which makes the
        scores, is float32 at least: rounded to bfloat16, many scores would be equal.
        """
        key = (tokens.device, tokens.dtype)
        if torch.compiler.is_compiling():
            return FlatScorer(self, *key)
        if not self._weights:
            self._weights = tuple(own for own in self.parameters() if not own.is_inference())
        versions = [weight._version for weight in self._weights]
        if versions != self._versions:
            self._fitted.clear()
            self._versions = versions
        found = self._fitted.get(key)
        if found is None:  # another thread may forget it at once
            found = self._fitted[key] = FlatScorer(self, *key)
        return found

    def _forget(self) -> None:
        """Forget what was derived from the weights; they may be other ones from now on."""
        self._fitted.clear()
        self._weights = ()

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold: not what was derived from these weights."""
        return {**self.__dict__, "_fitted": {}, "_weights": ()}

    def _apply(self, *args: Any, **kwargs: Any) -> "Scorer":
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> "Scorer":
        if mode or self.training:  # `eval` of a Scorer that is in use changes no weight
            self._forget()
        return super().train(mode)


class FlatScorer:
    """The operations of a Scorer on its tensors, without the calls of modules between them.

    On few tokens those calls take longer than the operations. For inference: residuals are added in
    place, and hooks of modules are not called.
    """

    def __init__(self, scorer: Scorer, device: torch.device, dtype: torch.dtype) -> None:
        """Take the weights of a Scorer, converted where device or dtype differ."""

        def norm(layer: nn.LayerNorm, dtype: torch.dtype = dtype) -> tuple[Tensor, Tensor]:
            return layer.weight.to(device, dtype), layer.bias.to(device, dtype)

        def linear(layer: nn.Linear, dtype: torch.dtype = dtype) -> tuple[Tensor, Tensor]:
            return layer.weight.to(device, dtype).t(), layer.bias.to(device, dtype)

        self.width = scorer.width
        self.hidden_size = scorer.config.hidden_size
        self.num_heads = scorer.config.num_heads
        self.score_dtype = torch.promote_types(dtype, torch.float32)
        self.first = (*norm(scorer.token_norm), *linear(scorer.projection))
        self.blocks = [
            (
                *(*norm(block.attention_norm), *linear(block.query_key_value)),
                *linear(block.attention_output),
                *(*norm(block.mlp_norm), *linear(block.mlp_in)),
                *linear(block.mlp_out),
            )
            for block in scorer.blocks
            if isinstance(block, ScorerBlock)
        ]
        self.last = (
            *norm(scorer.score_norm, self.score_dtype),
            *linear(scorer.score, self.score_dtype),
        )

    def __call__(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Return scores [B, N] of tokens [B, N, D]; `mask` is true at real tokens, [B, N]."""
        batch, count, _ = tokens.shape
        width = (self.hidden_size,)
        heads = (batch, count, 3, self.num_heads, self.hidden_size // self.num_heads)
        visible = None if mask is None else mask[:, None, None, :]
        scale, shift, matrix, bias = self.first
        rows = tokens.reshape(batch * count, self.width)
        hidden = torch.addmm(bias, torch.layer_norm(rows, (self.width,), scale, shift), matrix)
        for s1, t1, to_heads, b1, from_heads, b2, s2, t2, up, b3, down, b4 in self.blocks:
            normed = torch.layer_norm(hidden, width, s1, t1)
            query, key, value = (
                torch.addmm(b1, normed, to_heads).view(heads).permute(2, 0, 3, 1, 4).unbind()
            )
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
            mixed = mixed.transpose(1, 2).reshape(batch * count, self.hidden_size)
            hidden += torch.addmm(b2, mixed, from_heads)
            normed = torch.layer_norm(hidden, width, s2, t2)
            hidden += torch.addmm(b4, F.gelu(torch.addmm(b3, normed, up)), down)
        scale, shift, matrix, bias = self.last
        normed = torch.layer_norm(hidden.to(self.score_dtype), width, scale, shift)
        return torch.addmm(bias, normed, matrix).view(batch, count)


def standardise(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scale scores to mean 0 and variance 1 over the real tokens of each image; padding gets 0.

    Without it the Scorer could scale its scores to undo the annealing of the temperature.

    Args:
        scores: importance logits, [B, N].
        mask: true at real tokens, [B, N].
    """
    scores = scores.float()
    padding = torch.zeros_like(scores, dtype=torch.bool) if mask is None else ~mask
    count = (~padding).sum(-1, keepdim=True).clamp(min=1)
    mean = scores.masked_fill(padding, 0.0).sum(-1, keepdim=True) / count
    centred = (scores - mean).masked_fill(padding, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / count
    return centred * (variance + 1e-6).rsqrt()
