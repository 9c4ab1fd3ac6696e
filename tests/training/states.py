"""States of a training run, made by hand."""

import torch

from autoselect.training.engine_state import TrainedState
from autoselect.training.state import Origin, Progress, TrainingState

SHAPES = {"scorer.weight": (7, 5), "scorer.bias": (7,), "denoiser.scale": ()}


def make_state(step: int) -> TrainingState:
    """Return a state whose every number depends on the step."""
    generator = torch.Generator().manual_seed(step)

    def tensors() -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    return TrainingState(
        step=step,
        trained=TrainedState(tensors(), tensors(), tensors(), adam_step=step - 1),
        config={"steps": 10, "gate": {"token_budget": 16}},
        statistics={"mean": torch.randn(5, generator=generator)},
        origin=Origin("abc", "def", {"train_batch_size": 8}),
        progress=Progress(
            "r1",
            0.5 / step,
            skipped_steps=step,
            skipped_in_row=step,
            images=2 * step,
            smaller_images=step,
        ),
    )
