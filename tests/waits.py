"""Counters of what this package does to a device: waits for it, and kernels."""

import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = str(Path(__file__).parents[1] / "autoselect")
CHECKS_ON_CPU = ("ops/checks.py", "ops/noise.py")
WAITING_CALLS = {"tolist", "cpu"}
WAITING_OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "equal"}
"""`bool`, `int` and `item` of a tensor are the first of these."""
WITHOUT_KERNEL = {
    *("view", "expand", "slice", "select", "split", "split_with_sizes", "unsqueeze", "squeeze"),
    *("permute", "transpose", "t", "detach", "alias", "unbind", "_unsafe_view", "as_strided"),
    *("_reshape_alias", "lift_fresh", "empty", "empty_like"),
}


def is_ours(frame: FrameType | None, besides: tuple[str, ...] = CHECKS_ON_CPU) -> bool:
    """Return True if code of this package made a call, and not the model's own code.

    Calls of the files `besides` are not counted. Arguments of operators are checked for NaN and the
    like on a CPU only, where nothing has to be waited for (`values_are_checkable` in
    `ops/checks.py`).
    """
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT):
            return not (besides and name.endswith(besides))
        if "transformers" in name:
            return False
        frame = frame.f_back
    return False


def copies_and_waits(name: str, args: tuple, kwargs: dict) -> bool:
    """Return True for a call that would copy between host and device and wait for the copy."""
    if name in ("tensor", "as_tensor", "scalar_tensor"):
        return kwargs.get("device") is not None
    if name == "cuda" or name == "to":
        named = [*args[1:], kwargs.get("device")]
        moves = any(isinstance(value, str | torch.device) for value in named)
        return moves and not kwargs.get("non_blocking")
    indexed = args[1:2] if name in ("__getitem__", "__setitem__") else ()
    return any(isinstance(index, list | np.ndarray) for index in indexed)


class Calls(TorchFunctionMode):
    """Counts calls of tensors' methods that would wait, made by this package."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), kwargs or {}
        waits = name in WAITING_CALLS or copies_and_waits(name, args, kwargs)
        if waits and is_ours(sys._getframe(1)):
            self.waits[name] += 1
        return function(*args, **kwargs)


class Operators(TorchDispatchMode):
    """Counts operators: those that wait, and those that launch a kernel, made by this package."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if is_ours(sys._getframe(1)):
            indices = args[1] if name in ("index", "index_put", "index_put_") else ()
            boolean = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
            if name in WAITING_OPERATORS or boolean:
                self.waits[name] += 1
            if name.removesuffix("_copy") not in WITHOUT_KERNEL:
                self.kernels[name] += 1
        return function(*args, **(kwargs or {}))


def cost(run) -> tuple[Counter, Counter]:
    """Return the waits and the kernels of ours in a call, by name."""
    run()
    with Calls() as calls, Operators() as operators:
        run()
    # On a CPU `.cpu()` and what makes an index of a list are no operators; both counts are needed.
    return calls.waits + operators.waits, operators.kernels


@contextmanager
def waits_on_gpu() -> Iterator[list[str]]:
    """Collect the calls of this package that wait for the GPU in the block, with their callers."""
    found: list[str] = []

    def note(message, *_arguments) -> None:
        frame = sys._getframe(1)
        if "synchronizing CUDA operation" in str(message) and is_ours(frame, besides=()):
            found.append("".join(traceback.format_stack(frame, 6)))

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
