"""Layers repeated in the backward pass: the same gradients, less memory, an unchanged model."""

import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaModel

from autoselect.vlm import VisualAdapter, recompute
from autoselect.vlm.recompute import repeatable_layers, run_recomputed
from tests.measuring import peak_bytes
from tests.vlm.stock import model_of
from tests.vlm.tiny import TINY, batch

LAYERS = 14


def stock_pass(name):
    """Return the family's own forward as a function of its visual tokens, and these."""
    adapter = VisualAdapter(model_of(name))
    inputs = batch(name, [["s", "l"], ["s"]], "right")
    with torch.no_grad():
        outputs = adapter.encode(inputs)
        blocks = adapter.blocks(inputs["input_ids"], outputs)
        tokens, _ = adapter.tokens(blocks, outputs, later=True)

    def run(visual):
        call = adapter.with_outputs(inputs, adapter.replace(outputs, blocks, visual))
        return adapter.base(**call, use_cache=False).last_hidden_state

    return run, tokens


def gradient_of(run, tokens):
    tokens = tokens.clone().requires_grad_()
    hidden = run(tokens)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
    (hidden * weights).sum().backward()
    return hidden.detach(), tokens.grad


def state_of(model):
    """Mode and own attributes of every module, and the values of all parameters."""
    modules = [(module.training, dict(vars(module))) for module in model.modules()]
    return modules, [p.clone() for p in model.parameters()]


def unchanged(model, before):
    """Return True if all values are equal; fail if a module has another mode or attribute."""
    modules, values = state_of(model)
    for (mode, now), (old_mode, old) in zip(modules, before[0], strict=True):
        assert mode == old_mode and now.keys() == old.keys()
        assert all(now[name] is old[name] for name in now)
    return all(map(torch.equal, values, before[1]))


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_family_repeats_its_layers_with_equal_gradients(name):
    model = model_of(name)
    decoder = model.get_decoder()
    run, tokens = stock_pass(name)
    plain = gradient_of(run, tokens)
    before = state_of(decoder)
    calls = []
    layers = repeatable_layers(decoder)
    firsts = [next(iter(layer.children())) for layer in layers]
    handles = [
        first.register_forward_pre_hook(lambda *_, n=number: calls.append(n))
        for number, first in enumerate(firsts)
    ]
    repeated = gradient_of(lambda visual: run_recomputed(run, visual, decoder), tokens)
    for handle in handles:
        handle.remove()
    assert len(layers) == model.config.get_text_config().num_hidden_layers
    assert calls == [*range(len(layers)), *reversed(range(len(layers)))], "one layer at a time"
    assert torch.equal(plain[0], repeated[0]) and torch.equal(plain[1], repeated[1])
    assert bool(plain[1].any())
    assert unchanged(decoder, before)
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture(scope="module")
def deep():
    """Return a Llama of LAYERS layers, and embeddings for it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
    )
    return LlamaModel(config).eval().requires_grad_(False), torch.randn(2, 64, 32)


def forward(model, embeds):
    return model(inputs_embeds=embeds, use_cache=False).last_hidden_state


def test_the_peak_of_a_deep_model_falls_to_a_fraction(deep):
    """One checkpoint around the whole model is what saves nothing."""
    model, embeds = deep
    run = partial(forward, model)
    ways = {
        "plain": run,
        "whole": lambda tokens: checkpoint(run, tokens, use_reentrant=False),
        "layers": lambda tokens: run_recomputed(run, tokens, model),
    }
    peaks, gradients = {}, {}
    for name, way in ways.items():
        gradients[name] = gradient_of(way, embeds)[1]
        peaks[name] = peak_bytes(partial(gradient_of, way, embeds))
    assert peaks["layers"] < 0.33 * peaks["plain"], peaks
    assert peaks["whole"] > 0.9 * peaks["plain"], peaks
    assert torch.equal(gradients["plain"], gradients["layers"])


def test_layers_keep_their_inputs_only_until_the_backward(deep):
    model, embeds = deep
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    tokens = embeds.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run_recomputed(partial(forward, model), tokens, model)
    weights = {p.data_ptr() for p in model.parameters()}
    storages = {t.data_ptr() for t in kept if t.data_ptr() not in weights}
    assert LAYERS <= len(storages) <= LAYERS + 8, "the last norm and the first layer keep more"


def test_an_exception_leaves_the_model_as_it_was(deep):
    model, embeds = deep
    before = state_of(model)

    def broken(tokens):
        assert all("forward" in vars(layer) for layer in model.layers)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        run_recomputed(broken, embeds, model)
    assert unchanged(model, before)


def test_a_forward_of_a_layer_of_its_own_is_used_and_stays(deep):
    model, embeds = deep
    layer, calls = model.layers[3], []
    original = layer.forward

    def own(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    layer.forward = own
    try:
        gradient_of(lambda t: run_recomputed(partial(forward, model), t, model), embeds)
        assert layer.forward is own and len(calls) == 2
    finally:
        del layer.forward


def test_a_model_without_known_layers_is_repeated_whole_and_says_so(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).requires_grad_(False)
    tokens, calls = torch.randn(3, 8), []
    plain = gradient_of(model, tokens)
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    recompute._say_that_nothing_is_saved.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            repeated = gradient_of(lambda t: run_recomputed(model, t, model), tokens)
    handle.remove()
    assert len(calls) == 4 and torch.equal(plain[1], repeated[1])
    said = [record for record in caplog.records if "activation_checkpointing" in record.message]
    assert len(said) == 1 and "Sequential has no layers" in said[0].message
