"""Random removal of tokens from attention in training, as inference removes them.

With the gates s of soft top-K, [I, N], and a probability p that rises over the schedule, a token is

    removed with probability  p c (1 - s),   otherwise it passes the noise gate as it is

    per_token    c = 1
    per_image    c = clip(2 u - 1/2, 0, 1), u uniform per image: none of its closed tokens in a
                 quarter of the images, all in a quarter, a uniform share in the rest

No text and no other token attends to a removed one, so the frozen model computes what it computes
without it; it gets no gradient in that step. Every token that stays keeps its gradient, and tokens
stay with probability 1 - p c (1 - s), so none is closed for ever before p c reaches 1.

With `presence` the loss also tells a token that stays what its presence is worth: with
q = 1 - p c (1 - s), `log q - stop(log q)` is added to its attention logit. Its value is 0; its
gradient is the score-function gradient of the expected loss, the loss taken as linear in the
presence of each token.

The noise gate alone never shows the model a sequence with fewer tokens, so its loss cannot say
which tokens the model needs besides those that show something. All of this is ours.

Dimension letters: I images, N visual tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from autoselect.config import GateConfig, Removal
from autoselect.ops.noise import NoiseKey
from autoselect.ops.philox import philox4x32, split_words

STREAM_TAG = 0x41535432
"""Separates these draws from those of the noise, see `autoselect.ops.philox`."""
GONE = -1e30
"""Attention logit of a removed token: its weight is exactly 0 beside any other key."""
LEAST_PRESENCE = 1e-3
"""Lower bound of q in the gradient of `presence`."""


@dataclass(frozen=True)
class RemovalRule:
    """Which tokens of a step may leave attention.

    Attributes:
        kind: none, per_token or per_image.
        presence: also pass a gradient to the gate of every token that stays.
    """

    kind: Removal
    presence: bool

    @classmethod
    def of(cls, config: GateConfig) -> "RemovalRule":
        return cls(config.removal, config.removal_presence)


def removal_logits(rule: RemovalRule, gates: Tensor, probability: float, key: NoiseKey) -> Tensor:
    """Draw the removed tokens and return what is added to attention logits, float32, [I, N].

    It is `GONE` at removed tokens and 0 elsewhere, with the gradient of `presence` if the rule has
    one. The draw depends on seed, step, image and token alone.

    Args:
        rule: kind of removal; not none.
        gates: s of soft top-K, [I, N].
        probability: p, 0..1.
        key: seed, step and image ids.
    """
    tokens, images = uniforms(gates, key)
    share = torch.ones_like(images) if rule.kind == "per_token" else image_share(images)
    chance = probability * share[:, None] * (1 - gates)
    removed = tokens < chance.detach()
    logits = torch.zeros_like(gates)
    if rule.presence:
        log_presence = (1 - chance).clamp(min=LEAST_PRESENCE).log()
        logits = (log_presence - log_presence.detach()).to(gates.dtype)
    return logits.masked_fill(removed, GONE)


def image_share(uniform: Tensor) -> Tensor:
    """Return c of `per_image` from uniform numbers of 0..1."""
    return (2 * uniform - 0.5).clamp(0, 1)


def uniforms(gates: Tensor, key: NoiseKey, tag: int = STREAM_TAG) -> tuple[Tensor, Tensor]:
    """Draw uniform numbers in (0, 1): one per token [I, N] and one per image [I], float64.

    Counters are those of the noise with another tag: channel 0 of each token, channel 4 of the
    first token for the image.
    """
    seed, step, sample_ids = key.tensors(gates)
    zero = torch.zeros((), dtype=torch.int64, device=gates.device)
    words = (*split_words(step), zero, torch.full_like(zero, tag))
    stream = philox4x32(words, split_words(seed))[:2]
    places = torch.arange(gates.shape[1], device=gates.device)[None]
    tokens = philox4x32((zero, places, *split_words(sample_ids[:, None])), stream)[0]
    images = philox4x32((zero + 1, zero, *split_words(sample_ids)), stream)[0]
    return (tokens.double() + 0.5) * 2.0**-32, (images.double() + 0.5) * 2.0**-32
