"""What an attached call costs beside the model's own work: waits for the device, and kernels."""

from collections import Counter

import numpy as np
import pytest
import torch

from autoselect.pruning.diversity import DiversityCurve, TunedWeight
from tests.vlm.stock import attached
from tests.vlm.tiny import batch
from tests.waits import ROOT, cost

ONE_TOKEN = {"max_new_tokens": 1, "do_sample": False}


TUNED = DiversityCurve((TunedWeight(0.05, 0.4), TunedWeight(0.3, 0.6)))
"""What `autoselect train` and `tune` write into a selector."""


@torch.no_grad()
def cost_of(
    name: str, rows: list[list[str]], budget=4, diversity=0.0, **arguments
) -> tuple[Counter, Counter]:
    inputs = batch(name, rows)
    with attached(name, budget) as model:
        model.autoselect.selector = model.autoselect.selector.like(diversity, "rank")
        return cost(lambda: model.generate(**inputs, **{**ONE_TOKEN, **arguments}))


FAMILIES = ["llava", "internvl", "idefics3", "llava_next", "mistral3", "qwen2_5_vl", "qwen3_vl"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_with_an_image_waits_once_and_adds_few_kernels(name):
    waits, kernels = cost_of(name, [["l"]])
    assert waits.total() == 1, waits
    assert kernels.total() <= 40, (kernels.total(), kernels)
    waits, tuned = cost_of(name, [["l"]], diversity=TUNED)
    assert waits.total() == 1, waits
    assert tuned.total() <= kernels.total() + 4, tuned - kernels


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
