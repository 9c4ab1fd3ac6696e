"""Baselines on cases small enough to compute by hand."""

import math

import pytest
import torch

from autoselect.evaluation.methods import duplication, salience
from autoselect.evaluation.methods.context import SelectionContext
from autoselect.evaluation.methods.coverage import greedy_determinant
from autoselect.evaluation.methods.registry import METHODS, selector_method
from autoselect.evaluation.methods.usable import WITHOUT_CLASS_TOKEN, usable_methods
from tests.evaluation.fakes import FakeAsked, FakeSelector, make_samples


def directions(*degrees):
    """Unit vectors in a plane, [N, 2]; the cosine of two is that of the angle between them."""
    angles = torch.tensor(degrees) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def kept(name, tokens, attention=None, budget=2):
    attention = None if attention is None else torch.tensor([attention])
    rows = SelectionContext(tokens[None], ("a",), class_attention=attention)
    return METHODS[name].keep(rows, budget).positions[0].tolist()


def test_at_least_thirteen_baselines_are_listed():
    assert len(METHODS) - len({"oracle"}) >= 13


def test_scope_takes_what_adds_most_coverage_per_salience():
    """Angles 0, 0, 90: the pair covers 2, the lonely token 1. A second of the pair adds nothing."""
    tokens = directions(0.0, 0.0, 90.0)
    assert kept("scope", tokens, [1.0, 1.0, 1.0], budget=1) == [0]
    assert kept("scope", tokens, [1.0, 1.0, 3.0], budget=1) == [2], "3 x 1 against 1 x 2"
    assert kept("scope", tokens, [1.0, 1.0, 0.01]) == [0, 2]


def test_scope_counts_only_what_is_not_covered_yet():
    """After 0 degrees, 60 adds (1 - 0.5) + (cos 30 - 0); 90 adds 1 + (cos 30 - 0.5)."""
    tokens = directions(0.0, 60.0, 90.0)
    gain_60, gain_90 = 0.5 + math.cos(math.pi / 6), 1 + math.cos(math.pi / 6) - 0.5
    assert gain_60 == pytest.approx(gain_90)
    assert kept("scope", tokens, [9.0, 1.01, 1.0]) == [0, 1]
    assert kept("scope", tokens, [9.0, 1.0, 1.01]) == [0, 2]


def test_score_weighs_the_distance_with_the_salience_to_the_power_of_0_8():
    """From 0 degrees, 60 is 0.5 away and 90 is 1 away: it takes salience 2 ** 1.25 to win."""
    tokens = directions(0.0, 60.0, 90.0)
    edge = 2 ** (1 / 0.8)
    assert kept("score", tokens, [9.0, edge * 1.01, 1.0]) == [0, 1]
    assert kept("score", tokens, [9.0, edge * 0.99, 1.0]) == [0, 2]
    assert kept("score", tokens, [1.0, 1.0, 2.0], budget=1) == [2], "the most salient goes first"


def test_vispruner_keeps_half_by_salience_and_drops_the_duplicates_of_the_rest():
    """0 and 1 are salient. Of 2 and 4 (90 and 180 degrees), 2 repeats 3, so it goes."""
    tokens = directions(45.0, 0.0, 90.0, 90.0, 180.0)
    attention = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert salience.IMPORTANT_SHARE == 0.5
    assert kept("vispruner", tokens, attention, budget=4) == [0, 1, 3, 4]
    assert kept("vispruner", tokens, attention, budget=1) != [0], "half of one is none"


def test_holov_shares_the_budget_over_crops_by_their_mean_salience():
    """Crops of two tokens with means 6, 2, 0, ...: of four tokens 3 and 1, of which two fit."""
    tokens = directions(*([0.0] * 32))
    attention = [5.0, 7.0, 1.0, 3.0] + [0.0] * 28
    assert kept("holov", tokens, attention, budget=2) == [0, 1]
    assert kept("holov", tokens, attention, budget=3) == [0, 1, 3]
    assert kept("holov", tokens, attention, budget=4) == [0, 1, 2, 3]
    assert salience._shares(torch.tensor([3.0, 1.0]), [9, 9], 6) == [5, 1], (
        "floor, then the largest"
    )


def test_dart_keeps_pivots_by_norm_and_what_resembles_them_least():
    tokens = directions(0.0, 10.0, 90.0, 180.0) * torch.tensor([[3.0], [1.0], [1.0], [1.0]])
    assert kept("dart", tokens, budget=1) == [0]
    assert kept("dart", tokens, budget=2) == [0, 3]
    assert kept("dart", tokens, budget=3) == [0, 2, 3]


def test_prunesid_groups_tokens_by_the_component_they_load_on():
    """Three tokens are active in one channel, two in another: two components, by hand."""
    tokens = torch.zeros(1, 5, 4)
    tokens[0, :3, 0] = 6.0
    tokens[0, 3:, 1] = 6.0
    groups = duplication.component_groups(tokens, 2)[0].tolist()
    assert groups == [0, 0, 0, 1, 1]


def test_prunesid_keeps_the_most_salient_of_each_group_and_drops_its_duplicates():
    similarity = torch.tensor(
        [[1.0, 0.9, 0.1, 0.0], [0.9, 1.0, 0.1, 0.0], [0.1, 0.1, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    )
    pick = duplication._representatives
    one_group = torch.zeros(4, dtype=torch.long)
    attention = torch.tensor([4.0, 3.0, 2.0, 1.0])
    # The mean cosine is 1.1 / 6; of 4 tokens the threshold is 4 / 32 of it, 0.023.
    assert sorted(pick(attention, similarity, one_group, 2).tolist()) == [0, 3]
    assert sorted(pick(attention, similarity, one_group, 3).tolist()) == [0, 1, 3]
    groups = torch.tensor([0, 0, 0, 1])
    assert sorted(pick(attention, similarity, groups, 2).tolist()) == [0, 3]
    assert duplication._shares([3, 1], [5, 1], 1) == [1, 0]
    assert duplication._shares([3, 1], [5, 1], 5) == [4, 1]


def test_norm_class_attention_and_llm_attention_keep_the_largest():
    tokens = torch.tensor([[3.0, 4.0], [0.0, 6.0], [1.0, 1.0]])
    assert kept("norm", tokens, budget=1) == [1]
    assert kept("cls_attention", tokens, [0.1, 0.2, 0.7], budget=2) == [1, 2]
    rows = SelectionContext(tokens[None], ("a",), llm_attention=torch.tensor([[0.5, 0.1, 0.4]]))
    assert METHODS["fastv"].keep(rows, 2).positions[0].tolist() == [0, 2]


def test_cdpruner_prefers_tokens_unlike_the_text_and_unlike_each_other():
    """Text at 0 degrees: relevance 0.01, 1 and 1 for 0, 180 and 181 degrees."""
    tokens = directions(0.0, 180.0, 181.0)
    rows = SelectionContext(tokens[None], ("a",), question=directions(0.0))
    assert METHODS["cdpruner"].keep(rows, 1).positions[0].tolist() == [1]
    kernel = torch.tensor([[[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 0.5]]])
    assert sorted(greedy_determinant(kernel, 2)[0].tolist()) == [0, 2]


def test_a_selector_with_diversity_names_the_method_of_the_same_form():
    assert "2602.13315" not in selector_method(FakeSelector()).source
    diverse = FakeSelector()
    diverse.diversity = 0.4
    assert "IDPruner, arXiv 2602.13315" in selector_method(diverse).source


def test_methods_that_read_a_class_token_say_what_they_use_without_one():
    class Patches(FakeAsked):
        def encode(self, samples, attention=False, sites=()):
            found = super().encode(samples, attention)
            return type(found)(found.images, found.output, False if attention else None)

    names = ("cls_attention", "visionzip", "scope", "grid")
    methods = tuple(METHODS[name] for name in names)
    found, left_out = usable_methods(Patches(), make_samples(1), methods, strict=True)
    assert not left_out
    assert [WITHOUT_CLASS_TOKEN in method.source for method in found] == [True, True, True, False]
    found, _ = usable_methods(FakeAsked(), make_samples(1), methods, strict=True)
    assert not any(WITHOUT_CLASS_TOKEN in method.source for method in found)
