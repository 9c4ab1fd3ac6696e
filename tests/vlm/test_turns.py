"""Conversations that keep all their tokens take turns on one model, as pruned ones do.

Families with M-RoPE keep on the model what later positions add to the number of columns; there the
next call, of any conversation, replaces it.
"""

import pytest
import torch
from transformers import DynamicCache

from tests.vlm.stock import PER_TOKEN, attached, close, model_of, with_text
from tests.vlm.tiny import ALL, batch

ON_GRID = ["glm4v", "qwen2_5_vl", "qwen2_vl", "qwen3_vl"]
ROWS = [["s"], [], ["l", "s"]]
QUESTION = torch.tensor([[40, 41, 42], [43, 44, 45], [46, 47, 48]])
GREEDY = {"max_new_tokens": 3, "do_sample": False}
WITH_LOGITS = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
MANY = 1000


def of_text(longer, new):
    """Return the arguments of a turn without an image, for its `new` last columns."""
    cut = {name: longer[name][:, -new:] for name in PER_TOKEN if name in longer}
    return {**cut, "attention_mask": longer["attention_mask"]}


@pytest.mark.parametrize("name", ON_GRID)
@torch.no_grad()
def test_a_turn_by_hand_is_right_behind_the_call_of_another_conversation(name):
    inputs, other = batch(name, ROWS), batch(name, [["l"]], seed=7)
    longer = with_text(inputs, QUESTION)
    want = model_of(name)(**longer).logits[:, -3:]
    with attached(name, MANY) as model:
        cache = model(**inputs).past_key_values
        for call in (other, {**other, "visual_token_budget": 4}):
            model(**call)
        close(model(**of_text(longer, 3), past_key_values=cache).logits, want)


@pytest.mark.parametrize("name", ON_GRID)
@torch.no_grad()
def test_a_turn_of_generate_is_right_behind_the_call_of_another_conversation(name):
    inputs, other, stock = batch(name, ROWS), batch(name, [["l"]], seed=7), model_of(name)

    def turns(model, between):
        cache = DynamicCache(config=model.config.get_text_config())
        first = model.generate(**inputs, **GREEDY, past_key_values=cache)[:, -3:]
        between()
        longer = with_text(inputs, torch.cat([first, QUESTION], dim=1))
        text = {n: longer[n] for n in PER_TOKEN if n in longer}
        return model.generate(**text, **GREEDY, past_key_values=cache)

    want = turns(stock, lambda: None)
    with attached(name, MANY) as model:
        assert torch.equal(turns(model, lambda: model.generate(**other, **GREEDY)), want)


@pytest.mark.parametrize("name", ON_GRID)
@torch.no_grad()
def test_an_image_of_a_later_turn_is_right_behind_the_call_of_another_conversation(name):
    first, second = batch(name, [["s"]]), batch(name, [["l"]], seed=5)
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
    with attached(name, MANY) as model:

        def turns(budget, between):
            cache = model(**first).past_key_values
            between()
            call = {**second, "attention_mask": mask, "visual_token_budget": budget}
            logits = [model(**call, past_key_values=cache).logits]
            between()
            return [*logits, model(input_ids=QUESTION[:1], past_key_values=cache).logits]

        for budget in (4, MANY):
            alone = turns(budget, lambda: None)
            ours = turns(budget, lambda: model(**batch(name, [["l", "s"]], seed=7)))
            assert all(map(torch.equal, ours, alone))


@torch.no_grad()
def test_a_cache_of_all_tokens_may_be_taken_apart():
    with attached("qwen2_5_vl", MANY) as model:
        cache = model(**batch("qwen2_5_vl", [["s"]])).past_key_values
    assert DynamicCache(cache).get_seq_length() == cache.get_seq_length()


@pytest.mark.parametrize("budget", [4, MANY])
@torch.no_grad()
def test_what_is_known_of_a_call_is_not_left_on_the_callers_tensors(budget):
    """The same ids, a template's, may come again in a call without the image."""
    inputs = batch("qwen2_5_vl", [["s"]])
    with attached("qwen2_5_vl", budget) as model:
        model(**inputs)
        model.generate(**inputs, **GREEDY)
        assert not any(vars(value) for value in inputs.values())


def same_turn(ours, theirs):
    assert torch.equal(ours.sequences, theirs.sequences)
    close(torch.stack(ours.logits), torch.stack(theirs.logits))


@pytest.mark.parametrize("name", ["gemma3", "gemma4_unified", "molmo2"])
@torch.no_grad()
def test_text_behind_images_that_see_themselves_is_read_in_order(name):
    """Masks of these families look types up by place, and a pruned cache has other places."""
    inputs = batch(name, ROWS)
    longer = with_text(inputs, QUESTION)
    types = {n: v for n, v in longer.items() if n in PER_TOKEN[1:]}
    with attached(name, 0.4) as model:
        cache = model(**inputs).past_key_values
        ours = model(input_ids=QUESTION, **types, past_key_values=cache).logits
        close(ours, model(**longer).logits[:, -3:])


@pytest.mark.parametrize("name", ["gemma3", "gemma4_unified", "molmo2"])
def test_a_turn_of_generate_behind_such_images_is_read_in_order(name):
    inputs = batch(name, ROWS)
    with attached(name, 0.4) as model:
        first = model.generate(**inputs, **WITH_LOGITS)
        longer = with_text(inputs, torch.cat([first.sequences[:, -3:], QUESTION], dim=1))
        text = {n: v for n, v in longer.items() if n in PER_TOKEN}
        ours = model.generate(**text, **WITH_LOGITS, past_key_values=first.past_key_values)
        same_turn(ours, model.generate(**longer, **WITH_LOGITS))


@pytest.mark.parametrize("name", ["gemma3", "gemma4_unified"])
@torch.no_grad()
def test_a_later_image_that_sees_itself_is_read_as_one_of_the_first_prompt(name):
    first, second = batch(name, [["s"]]), batch(name, [["l"]], seed=5)
    ids = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **ALL[name].token_types(ids)}
    pixels = {n: v for n, v in second.items() if n not in PER_TOKEN}
    both = {n: torch.cat([first[n], v]) for n, v in pixels.items()}
    with attached(name, 0.4) as model:
        cache = model(**first).past_key_values
        ours = model.generate(**text, **pixels, **WITH_LOGITS, past_key_values=cache)
        same_turn(ours, model.generate(**text, **both, **WITH_LOGITS))
