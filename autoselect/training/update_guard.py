"""No update from numbers that went wrong, at any ZeRO stage.

DeepSpeed checks for overflow in fp16 only at some stages and silently at others. Here every rank
looks at its own loss and at its own gradients as they are produced, the ranks agree, and the
optimiser's step is shut for this update when anything was not finite: weights and moments stay
as they are on all ranks, and the skipped update is counted and logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoselect.training.engine_state import prepare_moments, trained_parameters

logger = logging.getLogger(__name__)


class NumbersError(RuntimeError):
    """Too many updates in a row had a loss or gradient that was not finite."""


class UpdateGuard:
    """Watches one engine; ask `update_allowed` between an update's last backward and its step.

        loss = engine(batch)                                # for each micro-batch
        guard.observe(loss)
        engine.backward(loss)
        if engine.is_gradient_accumulation_boundary():
            guard.update_allowed(step)
        engine.step()                                       # DeepSpeed counts micro-batches here

    Attributes:
        skipped: updates skipped so far; a run that goes on sets it to what its checkpoint says.
        skipped_in_row: updates skipped since the last good one.
    """

    def __init__(self, engine: Any, patience: int = 10) -> None:
        """Attaches to the trained parameters and the optimiser of `engine`.

        Args:
            engine: a DeepSpeed engine.
            patience: skipped updates in a row after which the run ends.
        """
        self.engine = engine
        self.patience = patience
        self.skipped = 0
        self.skipped_in_row = 0
        self._norm_at_stage_0 = float("nan")
        self._not_finite: dict[str, Tensor] = {}
        self._open = True
        prepare_moments(engine)
        for name, parameter in trained_parameters(engine).items():
            parameter.register_hook(self._gradient_hook(name))
        self._gate_optimizer(engine.basic_optimizer)

    def observe(self, loss: Tensor) -> None:
        """Looks at the loss of one micro-batch, a scalar; does not wait for the device."""
        self._mark("loss", loss.detach())

    def _mark(self, name: str, value: Tensor) -> None:
        bad = ~torch.isfinite(value.float().square().sum())
        seen = self._not_finite.get(name)
        self._not_finite[name] = bad if seen is None else seen | bad

    def _gradient_hook(self, name: str) -> Any:
        def look(gradient: Tensor) -> None:
            self._mark(name, gradient.detach())

        return look

    def _gate_optimizer(self, optimizer: Any) -> None:
        """Every ZeRO stage ends in this optimiser's `step`; shut, it changes nothing."""
        step = optimizer.step

        def gated_step(*args: Any, **kwargs: Any) -> Any:
            return step(*args, **kwargs) if self._open else None

        optimizer.step = gated_step

    def update_allowed(self, step: int) -> bool:
        """Whether loss and gradients were finite on all ranks (a collective); shuts or opens.

        Call `engine.step()` in both cases: it also clears the gradients.

        Args:
            step: number of the update, for the log line.

        Raises:
            NumbersError: `patience` updates in a row were skipped.
        """
        blame = self._agree(self._take_names())
        if self.engine.zero_optimization_stage() == 0:
            self._norm_at_stage_0 = _norm(trained_parameters(self.engine).values())
        self._open = not blame
        if self._open:
            self.skipped_in_row = 0
            return True
        self.skipped += 1
        self.skipped_in_row += 1
        logger.log(
            logging.WARNING if self.engine.global_rank == 0 else logging.DEBUG,
            "update %d skipped on all ranks: not finite on %s (%d skipped so far, %d in a row)",
            step,
            blame,
            self.skipped,
            self.skipped_in_row,
        )
        if self.skipped_in_row >= self.patience:
            raise NumbersError(
                f"{self.skipped_in_row} updates in a row had a loss or gradient that is not finite "
                f"(last: update {step}, {blame}); lower the learning rate or look at the data of "
                "these steps"
            )
        return False

    def gradient_norm(self) -> float:
        """Euclidean norm of the last update's gradient before clipping; ask after `step`."""
        if self.engine.zero_optimization_stage() == 0:
            return self._norm_at_stage_0
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def _take_names(self) -> list[str]:
        """Names of what was not finite on this rank since the last update; forgets them."""
        if not self._not_finite:
            return []
        bad = torch.stack([flag.to(self.engine.device) for flag in self._not_finite.values()])
        names = [
            name for name, is_bad in zip(self._not_finite, bad.tolist(), strict=True) if is_bad
        ]
        self._not_finite.clear()
        return names

    def _agree(self, names: list[str]) -> str:
        """Which ranks saw what, as text; empty when all numbers were finite everywhere."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return f"rank 0: {_shorten(names)}" if names else ""
        flags = torch.zeros(dist.get_world_size(), device=self.engine.device)
        flags[dist.get_rank()] = float(bool(names))
        dist.all_reduce(flags)
        if not flags.any():
            return ""
        seen: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(seen, _shorten(names) if names else None)
        return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(seen) if text)


def _norm(parameters: Iterable[torch.nn.Parameter]) -> float:
    gradients = [p.grad.float() for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    return float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())


def _shorten(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
