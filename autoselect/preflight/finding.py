"""Input and result of the checks of `autoselect doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        name: name of the check.
        status: `fail` if a training would not work, `warn` if it might not.
        found: what the check found.
        fix: what the user should do; empty if nothing.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Machine:
    """The machine that will train, from the command line.

    Attributes:
        gpus: number of devices, all nodes together.
        gpu: kind of GPU, needed if none is visible here.
        gpu_memory: usable GiB per device; that of the kind by default.
        visual_tokens: visual tokens per image, needed if the model varies it.
        port: TCP port at which the ranks meet.
    """

    gpus: int
    gpu: str | None
    gpu_memory: float | None
    visual_tokens: int | None
    port: int


@dataclass(frozen=True)
class Subject:
    """A training run whose configurations could be read, and its machine.

    Attributes:
        config: settings of the training.
        deepspeed: batch sizes, ZeRO stage and clipping.
        source: path of the DeepSpeed file.
        machine: the machine that will train.
    """

    config: TrainConfig
    deepspeed: DeepSpeedConfig
    source: str
    machine: Machine
