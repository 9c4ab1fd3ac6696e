"""A pruned cache is a cache: whatever transformers does to it, its rows go on as they would alone.

The right answer is computed without a cache: the untouched model reads the kept tokens of a row, at
their own positions, and all text behind them. Every public method of every cache class is called.
"""

import copy
import dataclasses
import inspect
import pickle
from functools import cache as once

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import cache_utils
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    EncoderDecoderCache,
    LinearAttentionCacheLayerMixin,
    StaticCache,
)

from autoselect import ConfigError
from tests.vlm.stock import PER_TOKEN, attached, close, model_of, original_positions, reduced
from tests.vlm.tiny import batch

ROWS = [["s", "s"], [], ["s"]]
STEP = torch.tensor([[40, 41], [42, 43], [44, 45]])
LAST = torch.tensor([[50, 51], [52, 53], [54, 55], [56, 57], [58, 59], [60, 61]])
LENGTH = 128
LAYER = {"sliding_window": 512, "max_cache_len": LENGTH}
BUDGET = 4
ALL = (0, 1, 2)
SPREAD = (0, 0, 1, 1, 2, 2)
UNCHANGED = (ALL, 0)
EMPTIED = "emptied"
APART = "known to layers only"

CACHE_METHODS = {
    "reorder_cache": ((torch.tensor([2, 0, 0]),), ((2, 0, 0), 0)),
    "batch_select_indices": ((torch.tensor([2, 1]),), ((2, 1), 0)),
    "batch_repeat_interleave": ((2,), (SPREAD, 0)),
    "crop": ((-1,), (ALL, 1)),
    "reset": ((), EMPTIED),
    "early_initialization": ((3, 2, 8, torch.float32, "cpu"), UNCHANGED),
    "offload": ((0,), UNCHANGED),
    "prefetch": ((0,), UNCHANGED),
    "activate_past_recording": ((), UNCHANGED),
    "is_recording_past": ((0,), UNCHANGED),
    "get_seq_length": ((), UNCHANGED),
    "get_max_length": ((), UNCHANGED),
    "get_mask_sizes": ((1, 0), UNCHANGED),
    "get_query_offset": ((), UNCHANGED),
    "has_previous_state": ((), UNCHANGED),
    "get_conv_state": ((0,), UNCHANGED),
    "get_recurrent_state": ((0,), UNCHANGED),
    "check_dynamic_cache": (("crop",), UNCHANGED),
    "set_previous_accepted_tokens": ((0,), UNCHANGED),
    "update": ((torch.zeros(3, 2, 1, 8), torch.zeros(3, 2, 1, 8), 0), APART),
    "update_conv_state": ((torch.zeros(3, 8, 1), 0), UNCHANGED),
    "update_recurrent_state": ((torch.zeros(3, 8, 1), 0), UNCHANGED),
    "update_indexer": ((torch.zeros(3, 1, 8), 0), UNCHANGED),
}
LAYER_METHODS = {
    **{name: CACHE_METHODS[name] for name in CACHE_METHODS if name not in ("offload", "prefetch")},
    "offload": ((), UNCHANGED),
    "prefetch": ((), UNCHANGED),
    "get_mask_sizes": ((1,), UNCHANGED),
    "lazy_initialization": ((torch.zeros(3, 2, 0, 8), torch.zeros(3, 2, 0, 8)), APART),
    "lazy_initialization_indexer": ((torch.zeros(3, 0, 8),), UNCHANGED),
    "update": ((torch.zeros(3, 2, 1, 8), torch.zeros(3, 2, 1, 8)), APART),
    "update_conv_state": ((torch.zeros(3, 8, 1),), UNCHANGED),
    "update_recurrent_state": ((torch.zeros(3, 8, 1),), UNCHANGED),
    "update_indexer": ((torch.zeros(3, 1, 8),), UNCHANGED),
}
"""Arguments of each method, and the rows that are left with how many columns are gone. Methods that
change an indexer or a linear part change nothing that a model of the tests reads."""

CACHES = {
    "Cache": lambda config: Cache(layer_class_to_replicate=DynamicLayer),
    "DynamicCache": lambda config: DynamicCache(config=config),
    "StaticCache": lambda config: StaticCache(config=config, max_cache_len=LENGTH),
    "QuantizedCache": lambda config: cache_utils.QuantizedCache("fp8", config),
}
DRAFTS = {
    "MtpCache": lambda: cache_utils.MtpCache(),
    "DFlashCache": lambda: cache_utils.DFlashCache(),
    "EncoderDecoderCache": lambda: EncoderDecoderCache(DynamicCache(), DynamicCache()),
}
NOT_INSTALLED = ("QuantoQuantizedLayer", "HQQQuantizedLayer")
NO_ATTENTION = ("LinearAttentionLayer", "DummyLayer")
LAYERS = (CacheLayerMixin, LinearAttentionCacheLayerMixin, DummyLayer)


def classes(*kinds):
    """Return the classes of transformers.cache_utils of some kinds that can be built."""
    found = {c.__name__: c for _, c in inspect.getmembers(cache_utils, inspect.isclass)}
    own = {n: c for n, c in found.items() if issubclass(c, kinds) and not inspect.isabstract(c)}
    return {n: c for n, c in own.items() if c.__module__ == cache_utils.__name__}


ATTENTION = sorted(set(classes(*LAYERS)) - {*NOT_INSTALLED, *NO_ATTENTION})
FP8 = ("QuantizedCache", "Fp8QuantizedLayer")


def public_methods(kind):
    return {
        name
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and callable(value) and not inspect.isclass(value)
    }


def test_every_cache_class_and_every_method_of_it_is_known():
    assert set(classes(Cache)) == {*CACHES, *DRAFTS}
    for kind in classes(Cache).values():
        assert public_methods(kind) <= set(CACHE_METHODS), kind
    for kind in classes(*LAYERS).values():
        assert public_methods(kind) <= set(LAYER_METHODS), kind
    for name in NOT_INSTALLED:
        with pytest.raises(ImportError):
            classes(*LAYERS)[name]()


def made(family, kind):
    config = model_of(family).config
    if kind in CACHES:
        return CACHES[kind](config)
    count = config.get_text_config().num_hidden_layers
    return Cache(layers=[classes(*LAYERS)[kind](**layer_arguments(kind)) for _ in range(count)])


def layer_arguments(kind):
    known = inspect.signature(classes(*LAYERS)[kind].__init__).parameters
    return {name: value for name, value in LAYER.items() if name in known}


@once
def filled(family, kind, pruned):
    """Return a cache of three prompts and two tokens of text, and the selection of its images."""
    inputs, model, cache = batch(family, ROWS), model_of(family), made(family, kind)
    if not pruned:
        model(**inputs, past_key_values=cache)
        return cache, None
    with attached(family, BUDGET):
        model(**inputs, past_key_values=cache)
        selection = model.autoselect.last
        model(input_ids=STEP, attention_mask=mask_of(inputs, STEP), past_key_values=cache)
    return cache, selection


def mask_of(inputs, *texts):
    return torch.cat([inputs["attention_mask"], *(torch.ones_like(text) for text in texts)], dim=1)


@once
def right_answer(family, row, gone, last):
    """Return the logits behind one row alone without a cache; `gone` tokens were cropped."""
    model = model_of(family)
    _, selection = filled(family, "DynamicCache", True)
    alone = copy.copy(selection)
    padding = int((batch(family, ROWS)["attention_mask"][row] == 0).sum())
    alone.images = [
        dataclasses.replace(image, row=0, columns=image.columns - padding)
        for image in selection.images
        if image.row == row
    ]
    inputs = batch(family, [ROWS[row]], seed=row)
    text = torch.cat([STEP[row : row + 1, : STEP.shape[1] - gone], LAST[last : last + 1]], dim=1)
    longer = {**inputs}
    for name, value in inputs.items():
        if name in PER_TOKEN:
            added = {"input_ids": text, "attention_mask": torch.ones_like(text)}
            zeros = torch.zeros_like(text).to(value.dtype)
            longer[name] = torch.cat([value, added.get(name, zeros)], dim=1)
    if ROWS[row]:
        return model(**reduced(model, longer, alone)).logits[0, -1]
    return model(**longer, position_ids=original_positions(model, longer)).logits[0, -1]


def go_on(family, cache, rows, gone):
    """Return the logits behind two more tokens of every row."""
    inputs, rows = batch(family, ROWS), list(rows)
    mask = mask_of(inputs, STEP[:, : STEP.shape[1] - gone])[rows]
    new = LAST[: len(rows)]
    mask = torch.cat([mask, torch.ones_like(new)], dim=1)
    return model_of(family)(input_ids=new, attention_mask=mask, past_key_values=cache).logits[:, -1]


def check(family, kind, acts, effect):
    """Change a cache, go on, and compare with the rows alone.

    An error is right if it is a ConfigError, or what the same change of an unpruned cache raises.
    """
    cache = copy.deepcopy(filled(family, kind, True)[0])
    for act in acts:
        try:
            act(cache)
        except ConfigError:
            return
        except Exception as error:
            with pytest.raises(type(error)):
                act(copy.deepcopy(filled(family, kind, False)[0]))
            if effect != UNCHANGED:
                return
    with attached(family, BUDGET) as model:
        if effect == APART:
            with pytest.raises(ConfigError, match="layer by layer"):
                go_on(family, cache, ALL, 0)
            return
        try:
            if effect == EMPTIED:
                ours = model(input_ids=LAST[:3], past_key_values=cache).logits[:, -1]
            else:
                ours = go_on(family, cache, *effect)
        except ConfigError:
            return
    if effect == EMPTIED:
        close(ours, model(input_ids=LAST[:3]).logits[:, -1])
        return
    rows, gone = effect
    want = [right_answer(family, row, gone, place) for place, row in enumerate(rows)]
    close(ours, torch.stack(want), 0.06 if kind in FP8 else 1e-5)


def groups(names, table):
    """Return methods with their effect: each that changes something alone, all others together."""
    quiet = [name for name in sorted(names) if table[name][1] == UNCHANGED]
    loud = [([name], table[name][1]) for name in sorted(names) if name not in quiet]
    return [*loud, (quiet, UNCHANGED)]


KINDS = [("llava", kind) for kind in [*CACHES, *ATTENTION]]
KINDS += [("gemma3", "DynamicCache"), ("gemma3", "StaticCache"), ("qwen2_5_vl", "DynamicCache")]


@pytest.mark.parametrize(("family", "kind"), KINDS)
@torch.no_grad()
def test_every_method_of_a_cache_gives_right_rows_or_an_error(family, kind):
    def calling(name):
        return lambda cache: getattr(cache, name)(*CACHE_METHODS[name][0])

    for names, effect in groups(public_methods(type(made(family, kind))), CACHE_METHODS):
        check(family, kind, [calling(name) for name in names], effect)


@pytest.mark.parametrize("kind", ATTENTION)
@torch.no_grad()
def test_every_method_of_all_layers_gives_right_rows_or_an_error(kind):
    def calling(name):
        arguments = LAYER_METHODS[name][0]
        return lambda cache: [getattr(layer, name)(*arguments) for layer in cache.layers]

    for names, effect in groups(public_methods(classes(*LAYERS)[kind]), LAYER_METHODS):
        check("llava", kind, [calling(name) for name in names], effect)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
    "copied layers": lambda cache: with_layers(cache, [copy.copy(own) for own in cache.layers]),
}


def with_layers(cache, layers):
    fork = copy.copy(cache)
    fork.layers = layers
    return fork


@pytest.mark.parametrize("way", COPIES)
@torch.no_grad()
def test_a_copy_of_a_cache_goes_on_apart_from_it(way):
    first = copy.deepcopy(filled("llava", "DynamicCache", True)[0])
    second = COPIES[way](first)
    assert isinstance(second, DynamicCache)
    second.reorder_cache(torch.tensor([2, 1, 0]))
    for cache, rows in ((second, (2, 1, 0)), (first, ALL)):
        want = [right_answer("llava", row, 0, place) for place, row in enumerate(rows)]
        with attached("llava", BUDGET):
            close(go_on("llava", cache, rows, 0), torch.stack(want))


@torch.no_grad()
def test_a_cache_whose_layers_are_shared_is_noticed():
    first = copy.deepcopy(filled("llava", "DynamicCache", True)[0])
    second = copy.copy(first)
    second.reorder_cache(torch.tensor([2, 1, 0]))
    want = right_answer("llava", 0, 0, 2)
    with attached("llava", BUDGET):
        close(go_on("llava", second, (2, 1, 0), 0)[2], want)
        with pytest.raises(ConfigError, match="layer by layer"):
            go_on("llava", first, ALL, 0)


@pytest.mark.parametrize("kind", CACHES)
@torch.no_grad()
def test_a_call_without_the_selector_is_refused(kind):
    """It would count columns of the cache, and read again what is in it."""
    cache = copy.deepcopy(filled("llava", kind, True)[0])
    model = model_of("llava")
    call = {"input_ids": STEP, "past_key_values": cache}
    with pytest.raises(ConfigError, match="that of a pruned prompt was given to a call"):
        model(**call)
    with attached("llava", BUDGET):
        with pytest.raises(ConfigError, match="that of a pruned prompt was given to a call"):
            model.forward(**call)
        ours = go_on("llava", cache, ALL, 0)
    want = [right_answer("llava", row, 0, row) for row in ALL]
    close(ours, torch.stack(want), 0.06 if kind in FP8 else 1e-5)


@torch.no_grad()
def test_a_cache_of_all_tokens_goes_on_without_the_selector():
    inputs, model = batch("qwen2_5_vl", [["s"]]), model_of("qwen2_5_vl")
    with attached("qwen2_5_vl", 1.0):
        cache = model(**inputs).past_key_values
        want = model(input_ids=STEP[:1], past_key_values=copy.deepcopy(cache)).logits
    assert torch.equal(model(input_ids=STEP[:1], past_key_values=cache).logits, want)


def test_a_cache_is_not_taken_apart_and_put_together_again():
    cache = copy.deepcopy(filled("llava", "DynamicCache", True)[0])
    with pytest.raises(ConfigError, match="which columns were removed"):
        DynamicCache(cache)


@pytest.mark.parametrize("kind", DRAFTS)
@torch.no_grad()
def test_a_cache_that_cannot_hold_a_pruned_prompt_is_refused_before_the_call(kind):
    with attached("llava", BUDGET) as model, pytest.raises(ConfigError, match=kind):
        model(**batch("llava", ROWS), past_key_values=DRAFTS[kind]())


@torch.no_grad()
def test_other_rows_than_those_of_the_cache_are_refused():
    cache = copy.deepcopy(filled("llava", "DynamicCache", True)[0])
    with attached("llava", BUDGET), pytest.raises(ConfigError, match="holds 3 pruned .* has 2"):
        go_on("llava", cache, (0, 1), 0)


@pytest.mark.parametrize("columns", [1, 20])
@torch.no_grad()
def test_a_mask_of_another_conversation_is_refused(columns):
    cache = copy.deepcopy(filled("llava", "StaticCache", True)[0])
    with attached("llava", BUDGET) as model, pytest.raises(ConfigError, match="attention_mask"):
        mask = torch.ones(3, columns, dtype=torch.long)
        model(input_ids=STEP, attention_mask=mask, past_key_values=cache)


@pytest.mark.parametrize("kind", ["QuantizedCache", "LinearAttentionAndFullAttentionLayer"])
@torch.no_grad()
def test_rows_are_selected_by_reordering_where_layers_hold_more_than_keys(kind):
    cache = copy.deepcopy(filled("llava", kind, True)[0])
    with pytest.raises(ConfigError, match=r"call \w+.reorder_cache"):
        cache.batch_select_indices(torch.tensor([2, 1]))
    cache.reorder_cache(torch.tensor(SPREAD))
    with attached("llava", BUDGET):
        ours = go_on("llava", cache, SPREAD, 0)
    want = [right_answer("llava", row, 0, place) for place, row in enumerate(SPREAD)]
    close(ours, torch.stack(want), 0.06 if kind in FP8 else 1e-5)


@torch.no_grad()
def test_a_method_that_failed_leaves_no_cache_to_go_on_from():
    cache = copy.deepcopy(filled("llava", "DynamicCache", True)[0])
    with pytest.raises(ValueError):
        cache.crop(1)
    with attached("llava", BUDGET), pytest.raises(ConfigError, match="a method that failed"):
        go_on("llava", cache, ALL, 0)


@torch.no_grad()
def test_a_cache_that_is_filled_but_not_returned_knows_its_columns():
    inputs, cache = batch("llava", [["s"]]), DynamicCache()
    with attached("llava", BUDGET) as model:
        model(**inputs, past_key_values=cache, use_cache=False)
        want = model(**inputs).past_key_values
        ours, theirs = (model(input_ids=STEP[:1], past_key_values=c).logits for c in (cache, want))
    assert torch.equal(ours, theirs)


@torch.no_grad()
def test_embeddings_and_chunks_do_not_go_on_from_a_pruned_cache_in_generate():
    model = model_of("llava")
    cache = copy.deepcopy(filled("llava", "DynamicCache", True)[0])
    embeddings = model.get_input_embeddings()(STEP)
    with attached("llava", BUDGET):
        with pytest.raises(ConfigError, match="inputs_embeds"):
            model.generate(inputs_embeds=embeddings, past_key_values=cache, max_new_tokens=2)
        with pytest.raises(ConfigError, match="prefill_chunk_size"):
            model.generate(STEP, past_key_values=cache, prefill_chunk_size=1, max_new_tokens=2)


@torch.no_grad()
def test_a_search_that_widens_and_narrows_its_rows_equals_that_of_each_row():
    """As contrastive search does: three candidates per row, of which one is gone on from."""
    cache = copy.deepcopy(filled("llava", "DynamicCache", True)[0])
    inputs, tried = batch("llava", ROWS), torch.arange(50, 59)[:, None]
    mask, chosen = mask_of(inputs, STEP), torch.tensor([1, 3, 8])
    with attached("llava", BUDGET) as model:
        cache.batch_repeat_interleave(3)
        wide = torch.cat([mask.repeat_interleave(3, dim=0), torch.ones_like(tried)], dim=1)
        model(input_ids=tried, attention_mask=wide, past_key_values=cache)
        cache.batch_select_indices(chosen)
        new = torch.tensor([[60], [61], [62]])
        mask = torch.cat([wide[chosen], torch.ones_like(new)], dim=1)
        ours = model(input_ids=new, attention_mask=mask, past_key_values=cache).logits[:, -1]
        alone = copy.deepcopy(filled("llava", "DynamicCache", True)[0])
        text = torch.cat([tried[chosen], new], dim=1)
        mask = mask_of(inputs, STEP, text)
        want = model(input_ids=text, attention_mask=mask, past_key_values=alone).logits[:, -1]
    close(ours, want)


class CountWaits(TorchDispatchMode):
    """Counts the times at which the host waits for a value of the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        waits = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal")
        self.count += function.name() in waits
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_a_decoded_token_waits_for_the_device_as_often_as_without_a_selector(name, implementation):
    inputs, model = batch(name, ROWS), model_of(name)
    options = {"do_sample": False, "cache_implementation": implementation, "disable_compile": True}

    def waits(tokens):
        with CountWaits() as mode:
            model.generate(**inputs, **options, max_new_tokens=tokens)
        return mode.count

    stock = waits(6) - waits(3)
    with attached(name, BUDGET):
        assert waits(6) - waits(3) <= stock
