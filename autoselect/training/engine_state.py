"""Whole trained state of a DeepSpeed engine, read and written at every ZeRO stage.

Stage 0 has ordinary optimiser state, stages 1 and 2 have flat float32 partitions beside the model,
and stage 3 partitions the parameters themselves. `capture` gathers float32 weights and both Adam
moments from any of them; `restore` writes them back bit for bit, on any number of ranks. Every rank
calls these functions (collectives).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autoselect.config import ConfigError
from autoselect.config.extras import extra

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class TrainedState:
    """What an Adam step reads and writes, by name of the parameter; float32 on the CPU."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    first_moments: dict[str, Tensor] = field(default_factory=dict)
    second_moments: dict[str, Tensor] = field(default_factory=dict)
    adam_step: int = 0

    def weights_of(self, part: str) -> dict[str, Tensor]:
        """Return the weights of a submodule, by name inside it."""
        prefix = f"{part}."
        own = self.weights.items()
        return {name.removeprefix(prefix): t for name, t in own if name.startswith(prefix)}


def trained_parameters(engine: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in engine.module.named_parameters() if p.requires_grad}


def prepare_moments(engine: Any) -> None:
    """Create zero moments as Adam's first step would, so that they can be read before it.

    Raises:
        ConfigError: the engine's optimiser is not torch's Adam or AdamW.
    """
    optimizer = engine.basic_optimizer
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is a subclass of Adam
        raise ConfigError(
            f"optimizer {type(optimizer).__name__} is not supported: checkpoints hold the state of "
            'torch Adam; set "optimizer": {"type": "AdamW", "params": {"torch_adam": true}}'
        )
    for flat in _optimised_tensors(engine):
        if not optimizer.state[flat]:
            optimizer.state[flat] = {"step": torch.tensor(0.0)} | {
                moment: torch.zeros_like(flat, requires_grad=False) for moment in MOMENTS
            }
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _optimised_tensors(engine: Any) -> list[Tensor]:
    """Return the tensors that Adam updates on this rank: parameters, or flat partitions."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [tensor for group in engine.basic_optimizer.param_groups for tensor in group["params"]]


def capture(engine: Any) -> TrainedState:
    """Gather weights and moments on rank 0; other ranks get an empty state.

    Raises:
        ConfigError: the optimiser is not torch's Adam or AdamW.
    """
    prepare_moments(engine)
    state = TrainedState(adam_step=_adam_step(engine))
    is_main = engine.global_rank == 0
    for name, parameter in trained_parameters(engine).items():
        for key, target in (
            (None, state.weights),
            ("exp_avg", state.first_moments),
            ("exp_avg_sq", state.second_moments),
        ):
            value = _full(engine, parameter, key)
            if is_main:
                target[name] = value.detach().to("cpu", torch.float32, copy=True).contiguous()
    return state


def _adam_step(engine: Any) -> int:
    steps = {int(engine.basic_optimizer.state[flat]["step"]) for flat in _optimised_tensors(engine)}
    assert len(steps) == 1, f"the optimiser's partitions disagree on the step: {sorted(steps)}"
    return steps.pop()


def _full(engine: Any, parameter: torch.nn.Parameter, key: str | None) -> Tensor:
    """Return the whole weight (`key` None) or moment of a parameter, in its shape."""
    with extra("training"):
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if engine.zero_optimization_stage() == 0:
        return parameter if key is None else engine.basic_optimizer.state[parameter][key]
    if key is None:
        return safe_get_full_fp32_param(parameter)
    return safe_get_full_optimizer_state(parameter, key)


def check_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes of two sets of tensors; ZeRO-3 parameters count whole.

    Raises:
        ConfigError: a name is missing or unexpected, or a shape differs; all are listed.
    """
    # `train.py` imports this module before it can explain why transformers does not load.
    from autoselect.pruning.folder import differences

    problems = differences(
        {name: getattr(tensor, "ds_shape", tensor.shape) for name, tensor in expected.items()},
        {name: tensor.shape for name, tensor in found.items()},
    )
    if problems:
        raise ConfigError(
            f"{source} does not fit the model: {'; '.join(problems)}; resume with the model and "
            "scorer/denoiser sizes it was written with, or start in a new folder"
        )


def restore(engine: Any, state: TrainedState, source: str = "checkpoint") -> None:
    """Write a whole state into the engine.

    Args:
        engine: a DeepSpeed engine, fresh or used.
        state: what `capture` returned on rank 0; present on every rank.
        source: name of the state in error messages.

    Raises:
        ConfigError: names or shapes differ from the model's.
    """
    parameters = trained_parameters(engine)
    for tensors in (state.weights, state.first_moments, state.second_moments):
        check_keys(parameters, tensors, source)
    prepare_moments(engine)
    for flat in _optimised_tensors(engine):
        engine.basic_optimizer.state[flat]["step"].fill_(float(state.adam_step))
    for name, parameter in parameters.items():
        _set_weight(engine, parameter, state.weights[name])
        _set_optimised(engine, parameter, state.first_moments[name], "exp_avg")
        _set_optimised(engine, parameter, state.second_moments[name], "exp_avg_sq")


def _set_weight(engine: Any, parameter: torch.nn.Parameter, value: Tensor) -> None:
    """Write the weight that the model uses, and the float32 copy of the optimiser."""
    with extra("training"):
        import deepspeed

    stage = engine.zero_optimization_stage()
    if stage == 3:
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)
    else:
        parameter.data.copy_(value)
    if stage > 0:
        _set_optimised(engine, parameter, value, None)


def _set_optimised(
    engine: Any, parameter: torch.nn.Parameter, value: Tensor, key: str | None
) -> None:
    """Write this rank's part of the optimiser's weight (`key` None) or moment."""
    with extra("training"):
        from deepspeed import utils

    stage = engine.zero_optimization_stage()
    if stage == 0:
        engine.basic_optimizer.state[parameter][key].copy_(value)
    elif stage == 3:
        part = _zero3_part(parameter, value)
        if key is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, key)
    elif key is None:
        utils.safe_set_full_fp32_param(parameter, value)
    else:
        utils.safe_set_full_optimizer_state(parameter, value, key)


def _zero3_part(parameter: Any, value: Tensor) -> Tensor:
    """Return this rank's slice of a whole tensor, zero-padded as ZeRO-3 pads its last slice.

    DeepSpeed's own setter for whole tensors fails if the size is not a multiple of the ranks.
    """
    with extra("training"):
        from deepspeed import comm

    size = parameter.ds_tensor.numel()
    rank = comm.get_rank(group=parameter.ds_process_group)
    flat = value.flatten()
    part = flat.new_zeros(size)
    own = flat[rank * size : (rank + 1) * size]
    part[: own.numel()] = own
    return part
