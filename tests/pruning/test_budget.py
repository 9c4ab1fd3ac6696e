"""Budgets as users write them: numbers of any library, text, rules, one for each image."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from autoselect import ConfigError, attach
from autoselect.pruning.budget import budget_to_tokens, parse_budgets
from tests.vlm.stock import attached, model_of, selector
from tests.vlm.tiny import TINY, batch

NAME = "qwen2_vl"
SMALL, LARGE = (TINY[NAME].tokens(size) for size in "sl")
INPUTS = batch(NAME, [["s", "l"]])

MEANT = {
    "NumPy integer": (np.int64(4), (4, 4)),
    "torch integer": (torch.tensor(4), (4, 4)),
    "NumPy array of one number": (np.array(4), (4, 4)),
    "NumPy share": (np.float32(0.25), (2, 4)),
    "torch share": (torch.tensor(0.25), (2, 4)),
    "percentage": ("25%", (2, 4)),
    "text": ("4", (4, 4)),
    "rule": (lambda tokens: tokens // 2 - 1, (3, 7)),
    "rule in text": (lambda tokens: "50%" if tokens > SMALL else 3, (3, 8)),
    "list of kinds": ([np.int32(3), "25%"], (3, 4)),
    "tuple with a rule": ((0.5, lambda tokens: tokens - 1), (4, LARGE - 1)),
    "NumPy array": (np.array([3, 5]), (3, 5)),
    "torch tensor": (torch.tensor([3, 5]), (3, 5)),
    "more than the small image": (SMALL + 1, (SMALL, SMALL + 1)),
}


def counts_of(model) -> tuple[int, ...]:
    return tuple(len(image.kept) for image in model.autoselect.last.images)


@pytest.mark.parametrize("kind", MEANT)
@torch.no_grad()
def test_a_budget_means_the_same_however_it_is_written(kind):
    budget, counts = MEANT[kind]
    with attached(NAME, budget) as model:
        model(**INPUTS)
        assert counts_of(model) == counts
    with attached(NAME, 1.0) as model:
        model(**INPUTS, visual_token_budget=budget)
        assert counts_of(model) == counts
        assert model.autoselect.last.smaller_images == (counts[0] == SMALL)


@torch.no_grad()
def test_an_image_below_its_budget_is_an_error_on_request():
    with attached(NAME, SMALL, on_small_image="error") as model:
        model(**INPUTS)
        with pytest.raises(ConfigError, match=f"budget={SMALL + 1} exceeds the {SMALL} .* image 0"):
            model(**INPUTS, visual_token_budget=SMALL + 1)
        model.autoselect.on_small_image = "keep"
        model(**INPUTS, visual_token_budget=SMALL + 1)
        assert model.autoselect.last.smaller_images == 1


REFUSED = {
    "budget=0 is below 1": 0,
    "budget=-3 is below 1": np.int64(-3),
    "budget=1.5 as a share": 1.5,
    "budget='much' is not a number": "much",
    "budget=None is not a number": None,
    "budget=True is not a number": True,
    "budget=2.0 as a share": [4, 2.0],
    r"budget=\[\] is empty": [],
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_budget_without_a_meaning_is_refused_when_a_selector_is_attached(message):
    model = model_of(NAME)
    with pytest.raises(ConfigError, match=message):
        attach(model, selector(), REFUSED[message])
    assert getattr(model, "autoselect", None) is None


@torch.no_grad()
def test_a_rule_that_returns_no_budget_is_named_when_it_is_used():
    with attached(NAME, lambda tokens: None) as model:
        with pytest.raises(ConfigError, match="budget=None is not a number"):
            model(**INPUTS)
        with pytest.raises(ConfigError, match="is not a number"):
            model(**INPUTS, visual_token_budget=lambda tokens: lambda more: 3)


def test_a_budget_that_changes_during_generate_holds_for_the_next_call():
    """Without a cache every step selects again; another thread may change the budget meanwhile."""
    call = {**INPUTS, "max_new_tokens": 3, "do_sample": False, "use_cache": False}
    with attached(NAME, 4) as model:
        want = model.generate(**call, return_dict_in_generate=True, output_logits=True)
        change = model.get_decoder().register_forward_hook(
            lambda *_: setattr(model.autoselect, "budget", 1)
        )
        try:
            ours = model.generate(**call, return_dict_in_generate=True, output_logits=True)
        finally:
            change.remove()
        assert counts_of(model) == (4, 4)
        assert all(map(torch.equal, ours.logits, want.logits))
        model.generate(**call)
        assert counts_of(model) == (1, 1)


def test_a_budget_in_a_generation_config_is_the_budget_of_its_calls():
    """transformers keeps what it does not know there, without a word."""
    settings = GenerationConfig(max_new_tokens=2, visual_token_budget=2)
    with attached(NAME, 4) as model:
        model.generate(**INPUTS, generation_config=settings)
        assert counts_of(model) == (2, 2)
        model.generate(**INPUTS, generation_config=settings, visual_token_budget=3)
        assert counts_of(model) == (3, 3)
        model.generate(**INPUTS, generation_config=GenerationConfig(max_new_tokens=2))
        assert counts_of(model) == (4, 4)
        rest = {name: value for name, value in INPUTS.items() if name != "input_ids"}
        model.generate(INPUTS["input_ids"], settings, **rest)
        assert counts_of(model) == (2, 2)
        model.generation_config.visual_token_budget = 1
        try:
            model.generate(**INPUTS, max_new_tokens=2)
            assert counts_of(model) == (1, 1)
            model.generate(**INPUTS, generation_config=settings)
            assert counts_of(model) == (2, 2)
        finally:
            del model.generation_config.visual_token_budget


def test_an_unknown_choice_for_small_images_is_refused():
    with pytest.raises(ConfigError, match="on_small_image='drop' must be 'keep' or 'error'"):
        attach(model_of(NAME), selector(), 4, on_small_image="drop")


@pytest.mark.parametrize(
    ("name", "choice"), [("on_small_image", "Error"), ("video_budget_per", "frames")]
)
def test_an_unknown_choice_made_after_attaching_is_refused_by_the_next_call(name, choice):
    """It would count as the other one, without a word."""
    with attached(NAME, 4) as model:
        setattr(model.autoselect, name, choice)
        with pytest.raises(ConfigError, match=f"{name}='{choice}' must be "):
            model(**INPUTS)


def test_every_number_of_numpy_and_torch_is_converted_alike():
    shares = (0.25, np.float64(0.25), np.float16(0.25), torch.tensor(0.25))
    assert {budget_to_tokens(share, 16) for share in shares} == {4}
    assert all(type(budget_to_tokens(k, 16)) is int for k in (4, np.uint8(4), torch.tensor(4)))


def test_a_list_is_sorted_and_without_repeats():
    assert parse_budgets("32, 8,0.0555,16", 144) == (8, 16, 32)
    with pytest.raises(ConfigError, match="names no budget"):
        parse_budgets(" , ", 144)


@pytest.mark.parametrize("value", ["0", "577", "-0.1", "120%", "eight"])
def test_one_bad_entry_is_refused(value):
    with pytest.raises(ConfigError, match="budgets=.*budget="):
        parse_budgets(f"8,{value}", 576)
