"""Skips every update whose loss or gradient is not finite, at any ZeRO stage.

DeepSpeed checks only fp16, and at some stages silently. Here every rank looks at its loss and
gradients as they are produced, and the ranks agree. If any number was not finite, the optimiser's
step does nothing: weights and moments stay as they are on all ranks, and the skipped update is
counted and logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from autoselect.config.errors import first_names
from autoselect.ranks.exchange import any_true, gather_objects
from autoselect.training.engine_state import prepare_moments, trained_parameters

logger = logging.getLogger(__name__)


class NumbersError(RuntimeError):
    """Too many updates in a row, or all held-out losses, were not finite."""


class UpdateGuard:
    """Watches one engine; call `update_allowed` between the last backward and the step.

        loss = engine(batch)                                # for each micro-batch
        guard.observe(loss)
        engine.backward(loss)
        if engine.is_gradient_accumulation_boundary():
            guard.update_allowed(step)
        engine.step()                                       # DeepSpeed counts micro-batches here

    Args:
        engine: a DeepSpeed engine.
        patience: skipped updates in a row after which the run ends.

    Attributes:
        skipped: updates skipped so far; a resumed run sets it from its checkpoint.
        skipped_in_row: those since the last update that was made; set likewise.
    """

    def __init__(self, engine: Any, patience: int = 10) -> None:
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
        """Check the loss of one micro-batch, 0-d, without waiting for the device."""
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
        """Wrap the optimiser's `step`, which every ZeRO stage calls, so that it can be skipped."""
        step = optimizer.step

        def gated_step(*args: Any, **kwargs: Any) -> Any:
            return step(*args, **kwargs) if self._open else None

        optimizer.step = gated_step

    def update_allowed(self, step: int, trains: bool = True) -> bool:
        """Return True if loss and gradients were finite on all ranks (a collective).

        Call `engine.step()` in both cases: it clears the gradients, and updates only after True.

        Args:
            step: number of the update, for the log line.
            trains: false if no rank had anything to learn from. Then the update is left out,
                because momentum and weight decay would still move the weights.

        Raises:
            NumbersError: `patience` updates in a row were skipped.
        """
        blame = self._agree(self._take_names())
        if self.engine.zero_optimization_stage() == 0:
            self._norm_at_stage_0 = _norm(trained_parameters(self.engine).values())
        self._open = trains and not blame
        if not blame:
            self.skipped_in_row = 0
            return self._open
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
        """Return the Euclidean norm of the last gradient before clipping; call it after `step`."""
        if self.engine.zero_optimization_stage() == 0:
            return self._norm_at_stage_0
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def _take_names(self) -> list[str]:
        """Return and forget the names of what was not finite on this rank in this update."""
        if not self._not_finite:
            return []
        bad = torch.stack([flag.to(self.engine.device) for flag in self._not_finite.values()])
        names = [
            name for name, is_bad in zip(self._not_finite, bad.tolist(), strict=True) if is_bad
        ]
        self._not_finite.clear()
        return names

    def _agree(self, names: list[str]) -> str:
        """Return which ranks saw what, as text; empty if all numbers were finite on all ranks."""
        if not any_true(bool(names), self.engine.device):
            return ""
        seen = gather_objects(first_names(names))
        return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(seen) if text)


def _norm(parameters: Iterable[torch.nn.Parameter]) -> float:
    gradients = [p.grad.float() for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    return float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
