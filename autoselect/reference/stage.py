"""One resumable stage of a reference VLM's training, and what all stages share."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 3 % of the steps, then a cosine to 2 % of the peak."""
    warmup = max(1, int(0.03 * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def batch_indices(seed: int, batch_size: int, step: int, size: int) -> np.ndarray:
    """Images of one update: an epoch-wise permutation, a pure function of seed and step."""
    per_epoch = size // batch_size
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, 7, epoch]).permutation(size)
    return np.sort(order[place * batch_size : (place + 1) * batch_size])


Schedule = Callable[[int, int, float], float]
Optimizers = Callable[[nn.Module, float], list[torch.optim.Optimizer]]


def adamw(module: nn.Module, peak: float) -> list[torch.optim.Optimizer]:
    """AdamW on everything that is trained; only matrices decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim == 2], "weight_decay": 0.02},
        {"params": [p for p in trained if p.ndim != 2], "weight_decay": 0},
    ]
    return [torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))]


class Stage:
    """One resumable stage: parameters, optimisers, step counter and their file.

    Args:
        name: of the file.
        module: what is trained.
        steps: updates in all.
        peak: highest learning rate.
        folder: where the file lies.
        save_every: updates between two saved states.
        schedule: maps step, steps and peak to a learning rate.
        optimizers: builds the optimisers, each for its part of the parameters.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        steps: int,
        peak: float,
        folder: Path,
        save_every: int,
        schedule: Schedule = learning_rate,
        optimizers: Optimizers = adamw,
    ) -> None:
        self.name, self.module, self.steps, self.peak = name, module, steps, peak
        self.path, self.save_every, self.step = folder / f"{name}.pt", save_every, 0
        self.schedule, self.optimizers = schedule, optimizers(module, peak)
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            module.load_state_dict(state["module"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]
            logger.info("%s resumes at step %d of %d", name, self.step, steps)

    def update(self, loss: Tensor) -> None:
        """One optimiser step; saves every `save_every` steps and at the end."""
        self.module.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        rate = self.schedule(self.step, self.steps, self.peak)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.step += 1
        if self.step % self.save_every == 0 or self.step == self.steps:
            self.save()

    def save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)


def autocast() -> torch.autocast:
    """bfloat16 matrix products, about three times as fast as float32 on recent CPUs."""
    return torch.autocast("cpu", dtype=torch.bfloat16)
