"""What a check of `autoselect doctor` examines, and what it finds."""

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
        name: of the check.
        status: `fail` when a training would not work, `warn` when it might not.
        found: what is there.
        fix: what to do; empty when all is well.
    """

    name: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Machine:
    """What the command line says of the machine that will train.

    Attributes:
        gpus: devices of all nodes together.
        gpu: kind of device, where none is visible here.
        gpu_memory: usable GiB per device, instead of the kind's.
        visual_tokens: per image, where the model varies it.
        port: where the ranks meet.
    """

    gpus: int
    gpu: str | None
    gpu_memory: float | None
    visual_tokens: int | None
    port: int


@dataclass(frozen=True)
class Subject:
    """What is examined: a run that could be read, and the machine.

    Attributes:
        config: of the run.
        deepspeed: content of the DeepSpeed file.
        source: that file.
        machine: that will train.
    """

    config: TrainConfig
    deepspeed: DeepSpeedConfig
    source: str
    machine: Machine
