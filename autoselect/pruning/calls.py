"""Settings of one call of an attached model, kept apart for every thread."""

import threading
from dataclasses import dataclass

from torch import Tensor

from autoselect.pruning.budget import Budget


@dataclass(frozen=True)
class CallSettings:
    """Settings of one call.

    Attributes:
        budget: budget of this call; None for the attachment's own.
        frames: frames of every clip, if known; a tensor is read with the prompt.
        rows: prompts of the call; with beams or several samples the batch has a multiple of them.
    """

    budget: Budget | None = None
    frames: Tensor | list[int] | None = None
    rows: int | None = None


class CallOfThread(threading.local):
    """Settings of the `generate` call that a thread is in; a copy of the model starts empty."""

    def __init__(self) -> None:
        self.settings = CallSettings()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return CallOfThread, ()
