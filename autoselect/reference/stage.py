"""Run one resumable training stage of a reference VLM: schedule, order, optimisers, state."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from autoselect.config import ConfigError
from autoselect.files.atomic import replacing, write_text

logger = logging.getLogger(__name__)


def claim_work(work: Path, settings: dict[str, Any], same: str) -> None:
    """Create the work folder of a training and record the settings that it is made with.

    Raises:
        ConfigError: it was made with other settings; the message asks for `same`.
    """
    work.mkdir(parents=True, exist_ok=True)
    recorded = work / "recipe.txt"
    described = repr(sorted(settings.items()))
    if recorded.exists() and recorded.read_text() != described:
        raise ConfigError(
            f"work={work} was made with other settings; choose an empty folder or the same {same}"
        )
    write_text(recorded, described)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate: linear warm-up over 3 % of the steps, then cosine to 2 % of it."""
    warmup = max(1, int(0.03 * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def batch_indices(seed: int, batch_size: int, step: int, size: int) -> np.ndarray:
    """Return the image indices of one update; every epoch is a permutation by seed and epoch."""
    per_epoch = size // batch_size
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, 7, epoch]).permutation(size)
    return np.sort(order[place * batch_size : (place + 1) * batch_size])


Schedule = Callable[[int, int, float], float]
Optimizers = Callable[[nn.Module, float], list[torch.optim.Optimizer]]


def adamw(module: nn.Module, peak: float) -> list[torch.optim.Optimizer]:
    """Build AdamW for all trainable parameters; only matrices get weight decay."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim == 2]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0}]
    return [torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))]


@dataclass(frozen=True)
class Optimization:
    """How a stage changes its parameters.

    Attributes:
        schedule: returns the learning rate for a step, the number of steps and the peak.
        optimizers: builds the optimisers for a module and the peak learning rate; each trainable
            parameter belongs to one of them.
    """

    schedule: Schedule = learning_rate
    optimizers: Optimizers = adamw


DEFAULT_OPTIMIZATION = Optimization()


class Stage:
    """A training stage whose parameters, optimisers and step are saved and resumed."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        steps: int,
        peak: float,
        folder: Path,
        save_every: int,
        optimization: Optimization = DEFAULT_OPTIMIZATION,
    ) -> None:
        self.name, self.module, self.steps, self.peak = name, module, steps, peak
        self.path, self.save_every, self.step = folder / f"{name}.pt", save_every, 0
        self.schedule = optimization.schedule
        self.optimizers = optimization.optimizers(module, peak)
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            module.load_state_dict(state["module"])
            for optimizer, saved in zip(self.optimizers, _optimizer_states(state), strict=True):
                optimizer.load_state_dict(saved)
            self.step = state["step"]
            logger.info("%s resumes at step %d of %d", name, self.step, steps)

    def train(self, loss_of: Callable[[int], tuple[Tensor, dict[str, Any]]], every: int) -> None:
        """Make the updates that are left.

        Args:
            loss_of: returns the loss of an update by its number, and what its log line names.
            every: updates between two log lines.
        """
        started, first = time.monotonic(), self.step
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, disable=None)
        while self.step < self.steps:
            loss, named = loss_of(self.step)
            self.update(loss)
            bar.update()
            if self.step % every == 0:
                pace = (time.monotonic() - started) / (self.step - first)
                values = (self.name, self.step, loss.item(), named, pace)
                logger.info("%s step %d loss %.3f %s, %.2f s per step", *values)

    def update(self, loss: Tensor) -> None:
        """Make one step with all optimisers, and save every `save_every` steps and at the end."""
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
        with replacing(self.path) as stream:
            torch.save(state, stream)


def _optimizer_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the saved state of each optimiser; older files hold that of a single one."""
    return state["optimizers"] if "optimizers" in state else [state["optimizer"]]


def autocast() -> torch.autocast:
    """Use bfloat16 matrix products, about three times as fast as float32 on recent CPUs."""
    return torch.autocast("cpu", dtype=torch.bfloat16)
