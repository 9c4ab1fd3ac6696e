"""Every way to decode, and conversations on a pruned cache, against the masked model."""

import copy

import pytest
import torch
from transformers import StaticCache

from autoselect import ConfigError
from autoselect.vlm.cache_layout import CacheLayout
from autoselect.vlm.columns import PADDING
from autoselect.vlm.copies import repeats_each_image
from autoselect.vlm.pruned_cache import layout_of
from tests.vlm.stock import (
    PER_TOKEN,
    attached,
    close,
    masked,
    masked_generate,
    model_of,
    original_positions,
    reduced,
    with_text,
)
from tests.vlm.tiny import TINY, batch, build
from tests.vlm.tiny_prompts import FIRST_TEXT

FAMILIES = sorted(TINY)
MASKING = [name for name in FAMILIES if TINY[name].equals_masking]
CAUSAL = [name for name in MASKING if name != "paligemma"]
KINDS = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "idefics3", "ovis2"]
ROWS = [["s", "l"], [], ["s"]]
GREEDY = {"max_new_tokens": 4, "do_sample": False}
WITH_LOGITS = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
WAYS = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 20},
    "several samples": {"do_sample": True, "num_return_sequences": 2},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "repetition penalty": {"repetition_penalty": 1.7},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_decoding_equals_that_of_the_masked_model(name, way):
    arguments = {**GREEDY, **WAYS[way]}
    inputs, model = batch(name, ROWS), model_of(name)
    with attached(name, 0.3):
        torch.manual_seed(1)
        ours = model.generate(**inputs, **arguments)
        selection = model.autoselect.last
    assert len(selection.images) == 3
    torch.manual_seed(1)
    assert torch.equal(ours, masked_generate(model, inputs, selection, **arguments))


@pytest.mark.parametrize("way", ["no cache", "static cache"])
def test_labels_are_ignored_as_by_the_untouched_generate(way):
    """The processor of PaliGemma returns labels for every prompt."""
    inputs, arguments = batch("paligemma", ROWS), {**GREEDY, **WAYS[way]}
    with attached("paligemma", 0.3) as model:
        expected = model.generate(**inputs, **arguments)
        labelled = model.generate(**inputs, labels=inputs["input_ids"], **arguments)
    assert torch.equal(labelled, expected)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rows", [[["l"]], ROWS])
@torch.no_grad()
def test_a_loop_written_by_hand_equals_generate(name, rows):
    """Prefill by `model(**inputs)`, then one token at a time with the full attention mask."""
    inputs = batch(name, rows)
    generating = original_positions(model_of(name), inputs, generating=True)
    shift = 1 if name == "paligemma" else 0
    with attached(name, 0.3) as model:
        expected = model.generate(**inputs, **GREEDY)[:, -4:]
        output = model(**inputs, position_ids=generating + shift)
        mask, new = inputs["attention_mask"], []
        positions = output.past_key_values.autoselect_layout.rope_deltas
        for _ in range(4):
            best = output.logits[:, -1, FIRST_TEXT:].argmax(-1, keepdim=True) + FIRST_TEXT
            new.append(best)
            mask = torch.cat([mask, torch.ones_like(best)], dim=1)
            step = mask.sum(1, keepdim=True) - 1 + shift
            step = step if positions is None else (step + positions).expand(3, -1, -1)
            output = model(
                input_ids=best,
                attention_mask=mask,
                position_ids=step,
                past_key_values=output.past_key_values,
            )
    assert torch.equal(torch.cat(new, dim=1), expected)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_steps_without_positions_or_mask_go_on_where_the_prompt_ended(name):
    inputs = batch(name, [["l"]])
    step = torch.tensor([[40]])
    with attached(name, 0.3) as model:
        position = original_positions(model, inputs)[..., -1:] + 1
        first = model(**inputs).past_key_values
        second = copy.deepcopy(first)
        bare = model(input_ids=step, past_key_values=first).logits
        told = model(input_ids=step, past_key_values=second, position_ids=position).logits
    close(bare, told)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("rows", [[["l"]], ROWS])
def test_a_second_turn_goes_on_from_the_cache_of_the_first(name, rows):
    inputs, model = batch(name, rows), model_of(name)
    question = torch.randint(FIRST_TEXT, 90, (len(rows), 3), generator=torch.Generator())
    with attached(name, 0.3):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        selection = model.autoselect.last
        longer = with_text(inputs, torch.cat([first.sequences[:, -4:], question], dim=1))
        text = {n: v for n, v in longer.items() if n in PER_TOKEN}
        cache = copy.deepcopy(first.past_key_values)
        ours = model.generate(**text, past_key_values=first.past_key_values, **WITH_LOGITS)
        del text["attention_mask"]
        if len(rows) == 1:
            again = model.generate(**text, past_key_values=cache, **GREEDY)
            assert torch.equal(again, ours.sequences)
    same_answer(ours, masked_generate(model, longer, selection, **WITH_LOGITS))


def same_answer(ours, theirs):
    """Check for the same tokens and logits: an answer hides much of a wrong attention."""
    assert torch.equal(ours.sequences, theirs.sequences)
    close(torch.stack(ours.logits), torch.stack(theirs.logits), tolerance=2e-6)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_second_turn_by_hand_goes_on_from_the_cache_of_the_first(name):
    """One call of `forward`, with arguments of the new columns or of the whole conversation."""
    inputs, model = batch(name, [["l"]]), model_of(name)
    question = torch.randint(FIRST_TEXT, 90, (1, 9), generator=torch.Generator())
    longer = with_text(inputs, question)
    with attached(name, 0.3):
        first = model(**inputs).past_key_values
        selection = model.autoselect.last
        second = copy.deepcopy(first)
        types = {n: v for n, v in longer.items() if n in PER_TOKEN[2:]}
        whole = model(input_ids=question, past_key_values=first, **types).logits
        types = {n: v[:, -9:] for n, v in types.items()}
        new = model(input_ids=question, past_key_values=second, **types).logits
    assert torch.equal(whole, new)
    positions = original_positions(model, longer)
    mask = masked(longer, selection)
    expected = model(**{**longer, "attention_mask": mask, "position_ids": positions}).logits
    close(new, expected[:, -9:], tolerance=2e-6)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("sizes", [["s"], []])
def test_a_second_turn_may_bring_another_image(name, sizes):
    model = model_of(name)
    first, second = batch(name, [sizes]), batch(name, [["l"]], seed=5)
    ids = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
    both = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    both.update(TINY[name].token_types(ids))
    pixels = {n: v for n, v in second.items() if n not in PER_TOKEN}
    whole = {n: join_pixels(n, v, first[n]) if sizes else v for n, v in pixels.items()}
    with attached(name, 0.8):
        cache = model(**first).past_key_values
        earlier = model.autoselect.last
        ours = model.generate(**both, **pixels, past_key_values=cache, **WITH_LOGITS)
        selection = model.autoselect.last
    selection.images = (earlier.images if sizes else []) + selection.images
    same_answer(ours, masked_generate(model, {**both, **whole}, selection, **WITH_LOGITS))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_images_of_earlier_turns_beside_a_filled_cache_are_named(name):
    inputs = batch(name, [["l"]])
    with attached(name, 0.8) as model:
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        longer = with_text(inputs, first.sequences[:, -4:])
        with pytest.raises(ConfigError, match="filled cache pass only the images of the new turn"):
            model.generate(**longer, past_key_values=first.past_key_values, **GREEDY)


def join_pixels(name, second, first):
    """Return pixels of two turns as those of one row."""
    by_row = second.ndim == 5 and len(second) == 1 and second.shape[3] == 32
    return torch.cat([first, second], dim=1 if by_row else 0)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("way", ["prompt lookup", "assistant"])
def test_assisted_decoding_equals_that_of_the_masked_model(name, way):
    """Candidates that are rejected are cropped from the cache, those of the first step as well."""
    inputs = with_text(batch(name, [["l"]]), torch.tensor([[40, 41, 42, 43, 44, 40, 41]]))
    model, arguments = model_of(name), {**WITH_LOGITS, "max_new_tokens": 10}
    more = {"prompt_lookup_num_tokens": 3} if way == "prompt lookup" else {}
    with attached(name, 0.3):
        more = more or {"assistant_model": build(name)}
        ours = model.generate(**inputs, **arguments, **more)
        selection = model.autoselect.last
        layout = layout_of(ours.past_key_values)
    assert layout.full_length == ours.sequences.shape[1] - 1
    same_answer(ours, masked_generate(model, inputs, selection, **arguments))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("rows", [[["l"]], ROWS])
@pytest.mark.parametrize("gone", [2, 5])
def test_a_cropped_cache_goes_on_from_what_is_left(name, rows, gone):
    """Of answer and question: the cache knows three of the four new tokens, and the prompt."""
    inputs, model = batch(name, rows), model_of(name)
    other = torch.randint(FIRST_TEXT, 90, (len(rows), 6), generator=torch.Generator())
    with attached(name, 0.3):
        first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        selection, cache = model.autoselect.last, first.past_key_values
        cache.crop(-gone)
        said = with_text(inputs, first.sequences[:, -4:-1])
        left = {n: v[:, :-gone] if n in PER_TOKEN else v for n, v in said.items()}
        longer = with_text(left, other)
        text = {n: v for n, v in longer.items() if n in PER_TOKEN}
        ours = model.generate(**text, past_key_values=cache, **WITH_LOGITS)
    same_answer(ours, masked_generate(model, longer, selection, **WITH_LOGITS))


def test_a_cache_is_cropped_no_further_than_its_last_image():
    """Two rows padded on the right, of 6 and 4 tokens; the first lost columns 1 and 2."""
    layout = CacheLayout(torch.tensor([[0, 3, 4, 5], [0, 1, 2, 3]]), 6, padded=False)
    assert layout.cut_to(4).columns.tolist() == layout.columns.tolist()
    for length in (3, 2, 1):
        with pytest.raises(ConfigError, match=f"cropped from 4 to {length} columns"):
            layout.cut_to(length)
    alone = CacheLayout(layout.columns[:1], 6, padded=False, images_end=4)
    assert alone.cut_to(2).columns.tolist() == [[0, 3]] and alone.cut_to(2).full_length == 4
    equal = CacheLayout(torch.tensor([[0, 3, 4, 5], [0, 3, PADDING, PADDING]]), 6, padded=True)
    assert equal.cut_to(2).columns.tolist() == [[0, 3], [0, 3]]
    with pytest.raises(ConfigError, match="crop no further than to the end of its last image"):
        alone.cut_to(1)


@torch.no_grad()
def test_an_emptied_cache_begins_another_conversation():
    model, config = model_of("llava"), model_of("llava").config.get_text_config()
    texts = batch("llava", [[]], text=20)
    with attached("llava", 0.3):
        cache = StaticCache(config=config, max_cache_len=64)
        for inputs in (batch("llava", [["l"]]), batch("llava", [["s"]], seed=4), texts):
            cache.reset()
            again = model.generate(**inputs, past_key_values=cache, **GREEDY, disable_compile=True)
            assert torch.equal(again, model.generate(**inputs, **GREEDY))


def test_a_cache_of_other_rows_is_refused():
    inputs = batch("llava", [["s"], ["s"]])
    with attached("llava", 4) as model:
        cache = model(**inputs).past_key_values
        with pytest.raises(ConfigError, match="the same rows"):
            model(**batch("llava", [["s"]]), past_key_values=cache)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_cache_shrinks_with_the_budget(name):
    inputs = batch(name, [["l"]])
    tokens = TINY[name].tokens("l")
    lengths = []
    with attached(name, 1.0) as model:
        for kept in (tokens, 4, 1):
            lengths.append(
                model.generate(
                    **inputs, **GREEDY, visual_token_budget=kept, return_dict_in_generate=True
                ).past_key_values.get_seq_length()
            )
    assert [lengths[0] - length for length in lengths] == [0, tokens - 4, tokens - 1]


@pytest.mark.parametrize("more", [{}, WAYS["static cache"]], ids=["dynamic", "static"])
@torch.no_grad()
def test_a_window_that_spares_the_prompt_begins_behind_the_pruned_one(more, monkeypatch):
    """Unlimited-OCR's `generate` tells its cache the length of the full prompt."""
    name, window, steps = "unlimited_ocr", 2, 12
    inputs, model = batch(name, [["l"]]), model_of(name)
    monkeypatch.setattr(model.config.get_text_config(), "sliding_window", window)
    arguments = {**more, "max_new_tokens": steps, "do_sample": False}
    with attached(name, 4):
        tokens = model.generate(**inputs, **arguments)[:, -steps:]
        call = reduced(model, inputs, model.autoselect.last)
    prompt = call["input_ids"].shape[1]
    for _ in range(steps):
        query = torch.arange(call["input_ids"].shape[1])[:, None]
        key = query.T
        seen = (key <= query) & ((key < prompt) | (query - key < window))
        hidden = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        call["attention_mask"] = {"reference_sliding_attention": hidden, "full_attention": hidden}
        logits = model(**call, use_cache=False).logits[:, -1]
        best = logits[:, FIRST_TEXT:].argmax(-1, keepdim=True) + FIRST_TEXT
        call["input_ids"] = torch.cat([call["input_ids"], best], dim=1)
        call["position_ids"] = torch.cat(
            [call["position_ids"], call["position_ids"][:, -1:] + 1], dim=1
        )
    assert torch.equal(tokens, call["input_ids"][:, prompt:])


def test_a_method_that_forgets_the_spared_prompt_is_refused():
    with attached("unlimited_ocr", 4) as model:
        cache = model(**batch("unlimited_ocr", [["s"]])).past_key_values
        with pytest.raises(ConfigError, match="changes it in part or not at all"):
            cache.batch_repeat_interleave(2)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "glm4v"])
def test_each_copy_of_a_prompt_sees_all_its_images_or_the_call_is_refused(name):
    """Samples of the likeliest token alone are those of greedy search, in every copy."""
    copies = {**GREEDY, "do_sample": True, "top_k": 1, "num_return_sequences": 2}
    inputs = {count: batch(name, [["s"] * count, [], ["s"]]) for count in (1, 2)}
    model = model_of(name)
    mixed = repeats_each_image(model)
    assert mixed == (name == "glm4v")
    with attached(name, 3):
        for count, own in inputs.items():
            if mixed and count > 1:
                for way in (copies, {**GREEDY, "num_beams": 2}):
                    with pytest.raises(ConfigError, match="several images the wrong ones for Glm"):
                        model.generate(**own, **way)
            else:
                found = model.generate(**own, **GREEDY).repeat_interleave(2, dim=0)
                assert torch.equal(model.generate(**own, **copies), found)


@pytest.mark.parametrize("name", ["fuyu", "llama4"])
@pytest.mark.parametrize("way", ["num_beams", "num_return_sequences"])
def test_copies_of_a_prompt_without_images_of_their_own_are_named(name, way):
    more = {**GREEDY, "do_sample": way == "num_return_sequences", way: 2}
    with attached(name, 3) as model:
        with pytest.raises(ConfigError, match="repeats the prompts of .* and not their images"):
            model.generate(**batch(name, [["s"], ["l"]]), **more)
