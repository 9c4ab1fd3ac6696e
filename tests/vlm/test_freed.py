"""An attached model, its selector and what was attached are freed as soon as nobody uses them."""

import gc
import weakref

import pytest
import torch

from autoselect import ConfigError, Selector, attach, detach
from autoselect.config import ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.pruning.attachment import keeping
from tests.vlm.tiny import batch, build
from tests.vlm.tiny_prompts import WIDTH

BRIEF = {"max_new_tokens": 2, "do_sample": False}
FAMILIES = ["llava", "qwen2_5_vl", "idefics3"]


@pytest.fixture
def no_collector():
    """Without the collector of circles, an object is freed only when nothing refers to it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def new_selector():
    return Selector(Scorer(WIDTH, ScorerConfig(hidden_size=16, num_heads=2)))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_attached_model_is_freed_like_a_stock_one(name, no_collector):
    inputs = batch(name, [["s"]])
    stock, attached = build(name), attach(build(name), new_selector(), 4)
    watched = [weakref.ref(stock), weakref.ref(attached), weakref.ref(attached.autoselect)]
    watched.append(weakref.ref(attached.autoselect.selector))
    stock.generate(**inputs, **BRIEF)
    attached.generate(**inputs, **BRIEF, num_beams=2)
    output = attached(**inputs)
    del stock, attached
    assert [reference() for reference in watched] == [None] * 4
    assert output.past_key_values.autoselect_layout.is_pruned


@pytest.mark.parametrize("name", FAMILIES)
def test_detach_leaves_no_reference(name, no_collector):
    model, selector = build(name), new_selector()
    attachment = attach(model, selector, 4).autoselect
    model.generate(**batch(name, [["s"]]), **BRIEF)
    selection = attachment.last
    detach(model)
    with keeping(model, [torch.tensor([1, 2])]):
        model.generate(**batch(name, [["s"]]), **BRIEF)
    watched = [weakref.ref(model), weakref.ref(selector)]
    del model, selector
    assert watched[0]() is None and watched[1]() is attachment.selector
    del attachment
    assert watched[1]() is None
    assert len(selection.images[0].kept) == 4 and selection.columns is not None


def test_a_model_freed_before_its_call_is_named():
    generate = attach(build("llava"), new_selector(), 4).generate
    with pytest.raises(ConfigError, match="keep it in a variable"):
        generate(**batch("llava", [["s"]]), **BRIEF)
