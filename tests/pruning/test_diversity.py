"""Weights of diversity: one or a curve over budgets, on a scale that outliers do not stretch."""

import json
import math

import pytest
import torch

from autoselect.config import ConfigError, ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.ops.diverse_top_k import diverse_top_k
from autoselect.pruning.diversity import DiversityCurve, TunedWeight, on_scale, weight_at
from autoselect.pruning.selector import Selector

CURVE = DiversityCurve((TunedWeight(0.05, 0.8), TunedWeight(0.2, 0.4)))


@pytest.fixture
def selector():
    torch.manual_seed(0)
    return Selector(Scorer(12, ScorerConfig(hidden_size=8, num_heads=2)), {"model": "tiny"})


@pytest.fixture
def tokens():
    return torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(1))


def test_a_curve_is_linear_in_the_logarithm_of_the_share_and_flat_outside():
    assert [weight_at(CURVE, k, 100) for k in (5, 10, 20)] == pytest.approx([0.8, 0.6, 0.4])
    assert [weight_at(CURVE, k, 100) for k in (1, 100)] == pytest.approx([0.8, 0.4])
    assert weight_at(0.3, 1, 100) == 0.3


def test_ranks_do_not_depend_on_distances_and_put_padding_nowhere():
    scores = torch.tensor([[3.0, 1.0, 2.0, 100.0], [0.0, 0.1, -5.0, 9.0]])
    second, third, fourth = -math.log(2), -math.log(3), -math.log(4)
    expected = torch.tensor([[second, fourth, third, 0], [third, second, fourth, 0]])
    torch.testing.assert_close(on_scale("rank", scores), expected)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    own = on_scale("rank", scores, mask)[1, :3]
    torch.testing.assert_close(own, torch.tensor([second, 0, third]))
    assert torch.equal(on_scale("rank", scores.exp()), on_scale("rank", scores))
    assert torch.equal(on_scale("minmax", scores), scores)


def test_equal_scores_rank_by_position():
    first, second, third = on_scale("rank", torch.ones(1, 3))[0].tolist()
    assert first == 0.0 > second > third
    assert on_scale("rank", torch.ones(1, 1)).tolist() == [[0.0]]


@pytest.mark.parametrize("relevance", ["minmax", "rank"])
@pytest.mark.parametrize("diversity", [0.0, 0.5, CURVE])
def test_an_image_that_is_not_a_number_is_refused(selector, tokens, relevance, diversity):
    tokens[1, 4, 2] = math.nan
    with pytest.raises(ConfigError, match="scores contain 20 NaN, the first in row 1"):
        selector.like(diversity, relevance).select(tokens, 3)


@pytest.mark.parametrize("relevance", ["minmax", "rank"])
@pytest.mark.parametrize("diversity", [0.0, 0.5, CURVE])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_token_stays_where_values_are_not_read(
    selector, tokens, relevance, diversity, broken, monkeypatch
):
    """On a GPU: the answer is then as visibly wrong as that of the untouched model."""
    own = selector.like(diversity, relevance)
    whole = own.select(tokens, 3)[1]
    monkeypatch.setattr("autoselect.pruning.selector.values_are_checkable", lambda _: False)
    assert torch.equal(own.select(tokens, 3)[1], whole)
    tokens[1, 14, 2] = broken
    kept, positions = own.select(tokens, 3)
    assert torch.equal(positions[::2], whole[::2])
    assert 14 in positions[1]
    assert not kept[1].isfinite().all()


def test_an_outlier_changes_a_selection_on_the_old_scale_only(selector, tokens):
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(2))
    outlier = scores.clone()
    outlier[torch.arange(3), scores.argmax(dim=1)] += 50
    selector.diversity = 0.5
    kept = [selector.choose(values, tokens, 6) for values in (scores, outlier)]
    assert torch.equal(*kept)
    selector.relevance = "minmax"
    kept = [selector.choose(values, tokens, 6) for values in (scores, outlier)]
    assert not torch.equal(*kept)


def test_each_budget_and_image_takes_its_own_weight(selector, tokens):
    selector.diversity = CURVE
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[1, 10:] = False
    scores = selector.score(tokens, mask)
    kept = selector.choose(scores, tokens, 2, mask)
    for row, count in enumerate((20, 10, 20)):
        own, its = scores[row : row + 1, :count], tokens[row : row + 1, :count]
        weight = CURVE.at(2 / count)
        expected = diverse_top_k(on_scale("rank", own), its, 2, weight)
        assert torch.equal(kept[row : row + 1], expected)
    assert torch.equal(
        selector.select(tokens, 4)[1],
        diverse_top_k(on_scale("rank", selector.score(tokens)), tokens, 4, 0.4),
    )


@torch.inference_mode()
def test_the_choice_of_a_curve_can_be_compiled(selector, tokens):
    """`bench prefill --compile` and `eval --latency-compiled` compile the selector."""
    torch._dynamo.reset()
    own = selector.like(CURVE)
    compiled = torch.compile(own.select, backend="eager", dynamic=False)
    for budget in (2, 3):
        assert torch.equal(compiled(tokens, budget)[1], own.select(tokens, budget)[1])


def test_a_curve_and_the_scale_are_stored(tmp_path, selector, tokens):
    selector.diversity = CURVE
    selector.save_pretrained(tmp_path)
    loaded = Selector.from_pretrained(tmp_path)
    assert (loaded.diversity, loaded.relevance) == (CURVE, "rank")
    assert torch.equal(loaded.select(tokens, 3)[1], selector.select(tokens, 3)[1])


def test_a_folder_without_a_scale_keeps_the_old_one(tmp_path, selector, tokens):
    selector.diversity = 0.5
    selector.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["relevance"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = Selector.from_pretrained(tmp_path)
    assert (loaded.diversity, loaded.relevance) == (0.5, "minmax")
    expected = diverse_top_k(selector.score(tokens), tokens, 5, 0.5)
    assert torch.equal(loaded.select(tokens, 5)[1], expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, "diversity=1.5 must lie in 0..1"),
        ([], r"shares \[\]; they must ascend"),
        ([{"share": 0.2, "weight": 0.1}, {"share": 0.1, "weight": 0.1}], "must ascend"),
        ([{"share": 0.2, "weight": 2.0}], "diversity=2.0 must lie in 0..1"),
        ([0.1, 0.2], "must be a number of 0..1, or a list"),
        (True, "diversity=True is not a number; choose 0..1"),
        ("0.5", "diversity='0.5' is not a number; choose 0..1"),
        (None, "diversity=None is not a number; choose 0..1"),
    ],
)
def test_other_values_are_refused(selector, value, message):
    with pytest.raises(ConfigError, match=message):
        selector.diversity = value


def test_an_unknown_scale_is_refused(selector):
    with pytest.raises(ConfigError, match="relevance='log' is unknown; choose one of minmax, rank"):
        Selector(selector.scorer, relevance="log")


@pytest.mark.parametrize("diversity", [0.0, 0.4, CURVE])
@pytest.mark.parametrize("relevance", ["minmax", "rank"])
def test_rows_with_their_own_number_are_chosen_as_each_would_be_alone(diversity, relevance):
    torch.manual_seed(3)
    selector = Selector(Scorer(8, ScorerConfig(hidden_size=8, num_heads=2)), None, diversity)
    selector.relevance = relevance
    scores, tokens = torch.randn(4, 20), torch.randn(4, 20, 8)
    lengths, counts = [20, 9, 20, 15], [2, 9, 11, 2]
    mask = torch.arange(20) < torch.tensor(lengths)[:, None]
    together = selector.choose(scores, tokens, counts, mask, lengths)
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        own = slice(row, row + 1)
        alone = selector.choose(scores[own, :length], tokens[own, :length], count)
        assert together[row].tolist() == alone[0].tolist() + [-1] * (11 - count)
