"""A call that fails leaves its cache as it was, or a cache that says so; the next call is right."""

import copy
from contextlib import contextmanager

import pytest
import torch
from transformers import DynamicCache, StaticCache

from autoselect import ConfigError
from tests.vlm.stock import attached
from tests.vlm.tiny import batch

CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=128),
}
STEP = torch.tensor([[40, 41], [42, 43]])
ROWS = [["s", "s"], ["s"]]
TURNS = ("first", "text", "image")


class OutOfMemory(Exception):
    pass


@contextmanager
def failing(module):
    """Let calls that reach a module fail there."""

    def fail(*_):
        raise OutOfMemory

    handle = module.register_forward_pre_hook(fail)
    try:
        with pytest.raises(OutOfMemory):
            yield
    finally:
        handle.remove()


def turn(model, cache, name, generating):
    """Return what the model says in a turn of a conversation."""
    first, new = batch("llava", ROWS), batch("llava", [["s"], []], seed=7)
    if name == "first":
        call = first
    else:
        call = {"input_ids": STEP} if name == "text" else new
        seen = torch.ones_like(STEP) if name == "text" else new["attention_mask"]
        call = {**call, "attention_mask": torch.cat([first["attention_mask"], seen], dim=1)}
    if generating:
        return model.generate(**call, past_key_values=cache, max_new_tokens=3, do_sample=False)
    return model(**call, past_key_values=cache).logits


def begun(model, kind, name):
    """Return a cache as it is before a turn."""
    cache = CACHES[kind](model.config.get_text_config())
    if name != "first":
        turn(model, cache, "first", False)
    return cache


@pytest.mark.parametrize("generating", [False, True])
@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("kind", CACHES)
@torch.no_grad()
def test_a_call_that_fails_before_its_layers_may_be_repeated(kind, name, generating):
    with attached("llava", 4) as model:
        cache = begun(model, kind, name)
        want = turn(model, copy.deepcopy(cache), name, generating)
        with failing(model.get_decoder()):
            turn(model, cache, name, generating)
        assert torch.equal(turn(model, cache, name, generating), want)


@pytest.mark.parametrize("generating", [False, True])
@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("kind", CACHES)
@torch.no_grad()
def test_a_cache_that_a_failed_call_filled_in_part_is_refused(kind, name, generating):
    with attached("llava", 4) as model:
        cache = begun(model, kind, name)
        with failing(model.get_decoder().layers[-1]):
            turn(model, cache, name, generating)
        with pytest.raises(ConfigError, match="by a call or a method that failed"):
            turn(model, cache, name, generating)
        cache.reset()
        want = turn(model, begun(model, kind, "first"), "first", generating)
        assert torch.equal(turn(model, cache, "first", generating), want)


@pytest.mark.parametrize("kind", CACHES)
@torch.no_grad()
def test_an_image_that_fails_behind_text_leaves_the_text(kind):
    text, image = batch("llava", [[], []]), batch("llava", [["s"], []], seed=7)
    mask = torch.cat([text["attention_mask"], image["attention_mask"]], dim=1)
    call = {**image, "attention_mask": mask}
    with attached("llava", 4) as model:
        cache = CACHES[kind](model.config.get_text_config())
        model(**text, past_key_values=cache)
        want = model(**call, past_key_values=copy.deepcopy(cache)).logits
        with failing(model.get_decoder()):
            model(**call, past_key_values=cache)
        assert torch.equal(model(**call, past_key_values=cache).logits, want)
