"""What an attached call costs beside the model's own work: waits for the device, and kernels."""

import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.vlm.stock import attached
from tests.vlm.tiny import batch

ROOT = str(Path(__file__).parents[2] / "autoselect")
WAITING_CALLS = {"tolist", "cpu"}
WAITING_OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "equal"}
"""`bool`, `int` and `item` of a tensor are the first of these."""
WITHOUT_KERNEL = {
    *("view", "expand", "slice", "select", "split", "split_with_sizes", "unsqueeze", "squeeze"),
    *("permute", "transpose", "t", "detach", "alias", "unbind", "_unsafe_view", "as_strided"),
    *("_reshape_alias", "lift_fresh", "empty"),
}
ONE_TOKEN = {"max_new_tokens": 1, "do_sample": False}


def is_ours(frame: FrameType | None) -> bool:
    """Return True if code of this package made a call, and not the model's own code.

    Scores are checked for NaN on a CPU only (`ops/checks.py`), where nothing has to be waited for.
    """
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT):
            return not name.endswith("ops/checks.py")
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


@torch.no_grad()
def cost_of(name: str, rows: list[list[str]], budget=4, **arguments) -> tuple[Counter, Counter]:
    inputs = batch(name, rows)
    with attached(name, budget) as model:
        return cost(lambda: model.generate(**inputs, **{**ONE_TOKEN, **arguments}))


FAMILIES = ["llava", "internvl", "idefics3", "llava_next", "mistral3", "qwen2_5_vl", "qwen3_vl"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_with_an_image_waits_once_and_adds_few_kernels(name):
    waits, kernels = cost_of(name, [["l"]])
    assert waits.total() == 1, waits
    assert kernels.total() <= 40, (kernels.total(), kernels)


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl"])
@pytest.mark.parametrize("number", [8, 64])
def test_more_images_add_neither_waits_nor_kernels(name, number):
    _, alone = cost_of(name, [["s"]])
    waits, kernels = cost_of(name, [["s"] * number])
    assert waits.total() == 1, waits
    assert kernels.total() <= alone.total() + 3, kernels - alone


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl"])
def test_every_budget_of_a_call_adds_three_kernels_however_many_images_have_it(name):
    """Images of two sizes keep a quarter of their tokens each, or 4 of them."""
    _, few = cost_of(name, [["s", "l"]], 0.25)
    waits, many = cost_of(name, [["s", "l"] * 16], 0.25)
    _, equal = cost_of(name, [["s", "l"] * 16], 4)
    assert waits.total() == 1, waits
    assert many.total() <= few.total()
    assert many.total() <= equal.total() + 2 * 3, many - equal


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_static_cache_adds_no_wait_per_decoded_token(name):
    static = {"cache_implementation": "static", "disable_compile": True, "max_new_tokens": 4}
    waits, _ = cost_of(name, [["l"]], **static)
    assert waits.total() == 1, waits


def test_the_counters_see_what_they_count():
    """Every way in which code of this package could wait, called as if it stood there."""
    scope = {"torch": torch, "np": np, "x": torch.arange(4), "cpu": torch.device("cpu")}
    for text in (
        *("x[0].item()", "x.tolist()", "bool(x[0])", "int(x[0])", "x.cpu()", "x.nonzero()"),
        *("x[x > 1]", "x[[0, 1]]", "x.to(cpu)", "torch.tensor([1], device=cpu)"),
    ):
        code = compile(text, f"{ROOT}/named_here_only.py", "eval")
        waits, _ = cost(lambda code=code: eval(code, scope))
        assert waits.total() >= 1, text
    code = compile("x.to(cpu, non_blocking=True) + x.view(2, 2).sum()", f"{ROOT}/here.py", "eval")
    waits, kernels = cost(lambda: eval(code, scope))
    assert not waits and kernels == {"add": 1, "sum": 1}
