"""Top-K by relevance and diversity: its two ends, a plain reference, padding, errors."""

import pytest
import torch

from autoselect.config import ConfigError, ScorerConfig
from autoselect.method.scorer import Scorer
from autoselect.ops.diverse_top_k import diverse_top_k, diverse_top_k_reference
from autoselect.ops.hard_top_k import hard_top_k
from autoselect.pruning.diversity import on_scale
from autoselect.pruning.selector import Selector

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")


def by_definition(scores, tokens, k, diversity):
    """Compute one row token by token, in double precision."""
    scores, tokens = scores.double(), tokens.double()
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    unit = torch.nn.functional.normalize(tokens - tokens.mean(0), dim=-1)
    kept = [int(scores.argmax())]
    while len(kept) < k:
        gains = {
            i: (1 - diversity) * relevance[i]
            - diversity * max(float(unit[i] @ unit[j]) for j in kept)
            for i in range(len(scores))
            if i not in kept
        }
        kept.append(max(gains, key=lambda i: gains[i]))
    return sorted(kept)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.integers(0, 10**6), st.integers(2, 24), st.floats(0, 1), st.data())
def test_it_is_the_greedy_rule_of_its_definition(seed, count, diversity, data):
    k = data.draw(st.integers(1, count))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, count, generator=generator)
    tokens = torch.randn(2, count, 5, generator=generator)
    for op in (diverse_top_k, diverse_top_k_reference):
        found = op(scores, tokens, k, diversity)
        for row in range(2):
            assert found[row].tolist() == by_definition(scores[row], tokens[row], k, diversity)


def test_without_diversity_it_is_hard_top_k():
    scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    scores[0, 5:20] = 1.0  # ties
    tokens = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(1))
    for k in (1, 7, 40):
        assert torch.equal(diverse_top_k(scores, tokens, k, 0.0), hard_top_k(scores, k))


@pytest.mark.parametrize("op", [diverse_top_k, diverse_top_k_reference])
@pytest.mark.parametrize("outlier", [-3.0, -1e4, 1e30, -torch.inf, torch.inf])
@pytest.mark.parametrize("count", [9, 2100])
def test_the_first_token_kept_has_the_best_score(op, outlier, count, device):
    """Also if scores differ by so little that they are equal when scaled to 0..1."""
    generator = torch.Generator().manual_seed(count)
    scores = 1 + torch.rand(4, count, generator=generator) * 1e-5
    scores[:, 2] = outlier
    scores[3, 2:] = -torch.inf
    tokens = torch.randn(4, count, 3, generator=generator).to(device)
    mask = (torch.rand(4, count, generator=generator) > 0.3).to(device)
    mask[3, :2] = False
    scores = scores.to(device)
    for valid in (None, mask):
        for diversity in (0.0, 0.3, 1.0):
            first = op(scores, tokens, 1, diversity, valid)
            assert torch.equal(first, hard_top_k(scores, 1, valid))


def _clustered(batch, count, width, dtype, device):
    """Return tokens that resemble each other, as those of an image do, and their scores."""
    generator = torch.Generator().manual_seed(count)
    centres = torch.randn(batch, 6, width, generator=generator)
    share = torch.softmax(4 * torch.randn(batch, count, 6, generator=generator), -1)
    tokens = share @ centres + 0.3 * torch.randn(batch, count, width, generator=generator) + 1
    scores = torch.randn(batch, count, generator=generator)
    return tokens.to(device, dtype), scores.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count, width, k", [(1, 3, 1), (63, 1, 9), (300, 70, 64), (2100, 40, 12)])
def test_it_agrees_with_the_reference(dtype, count, width, k, device):
    tokens, scores = _clustered(3, count, width, dtype, device)
    mask = torch.rand(3, count, generator=torch.Generator().manual_seed(1)).to(device) > 0.4
    for diversity in (0.0, 0.4, 1.0):
        for valid in (None, mask):
            expected = diverse_top_k_reference(scores, tokens, k, diversity, valid)
            assert torch.equal(diverse_top_k(scores, tokens, k, diversity, valid), expected)


@pytest.mark.parametrize("op", [diverse_top_k, diverse_top_k_reference])
def test_autocast_does_not_reach_into_the_operator(op, device):
    tokens, scores = _clustered(3, 300, 16, torch.float32, device)
    kept = op(scores, tokens, 90, 0.4)
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        assert torch.equal(op(scores, tokens, 90, 0.4), kept)


def test_a_budget_per_row_is_that_of_the_rows_alone(device):
    tokens, scores = _clustered(3, 60, 16, torch.float32, device)
    budgets = torch.tensor([5, 1, 20], device=device)
    found = diverse_top_k(scores, tokens, budgets, 0.4, width=22)
    assert torch.equal(diverse_top_k_reference(scores, tokens, budgets, 0.4, width=22), found)
    for row, k in enumerate(budgets.tolist()):
        alone = diverse_top_k(scores[row : row + 1], tokens[row : row + 1], k, 0.4)
        assert torch.equal(found[row, :k], alone[0]) and (found[row, k:] == -1).all()


@pytest.mark.parametrize("op", [diverse_top_k, diverse_top_k_reference])
def test_ties_go_to_the_lowest_position(op, device):
    """Equal scores and opposite pairs of equal tokens: every choice is a tie."""
    one = torch.tensor([1.0, 0.0], device=device)
    tokens = torch.stack([one, one, -one, -one, one, -one])[None]
    scores = torch.zeros(1, 6, device=device)
    assert op(scores, tokens, 2, 0.5).tolist() == [[0, 2]]
    assert op(scores, tokens, 4, 0.5).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("op", [diverse_top_k, diverse_top_k_reference])
def test_huge_scores_and_tokens_without_direction(op, device):
    scores = torch.tensor([[torch.inf, 3e38, 1.0, -torch.inf, -3e38]], device=device)
    tokens = torch.ones(1, 5, 4, device=device)  # all equal to their mean
    assert op(scores, tokens, 3, 0.3).tolist() == [[0, 1, 2]]


def test_thread_counts_and_runs_give_the_same_positions(native):
    tokens, scores = _clustered(5, 200, 33, torch.bfloat16, "cpu")
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            found.append(diverse_top_k(scores, tokens, 30, 0.4))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


def test_of_equal_tokens_one_is_kept():
    """Three copies of the best token, and two others: K = 3 keeps one of each."""
    a, b, c = torch.eye(3)
    tokens = torch.stack([a, a, a, b, c])[None]
    scores = torch.tensor([[3.0, 2.9, 2.8, 1.0, 0.5]])
    assert hard_top_k(scores, 3).tolist() == [[0, 1, 2]]
    assert diverse_top_k(scores, tokens, 3, 0.7).tolist() == [[0, 3, 4]]


def test_padding_is_never_kept_and_changes_nothing():
    generator = torch.Generator().manual_seed(2)
    scores, tokens = torch.randn(1, 9, generator=generator), torch.randn(1, 9, 4)
    padded = torch.cat([scores, torch.full((1, 4), 99.0)], dim=1)
    longer = torch.cat([tokens, torch.full((1, 4, 4), 7.0)], dim=1)
    mask = torch.arange(13)[None] < 9
    same = diverse_top_k(scores, tokens, 4, 0.5)
    assert torch.equal(diverse_top_k(padded, longer, 4, 0.5, mask), same)
    assert diverse_top_k(padded, longer, 11, 0.5, mask).tolist() == [[*range(9), -1, -1]]


@pytest.mark.parametrize("op", [diverse_top_k, diverse_top_k_reference])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 3e38])
def test_padding_may_be_anything(op, junk, device):
    tokens, scores = _clustered(4, 40, 8, torch.float32, device)
    place = torch.arange(40, device=device)
    mask = (place % 3 > 0) & (place < torch.tensor([[40], [30], [5], [0]], device=device))
    expected = op(scores, tokens, 9, 0.5, mask)
    scores, tokens = scores.masked_fill(~mask, junk), tokens.masked_fill(~mask[..., None], junk)
    assert torch.equal(op(scores, tokens, 9, 0.5, mask), expected)


@pytest.mark.parametrize("op", [diverse_top_k, diverse_top_k_reference])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
def test_similarities_that_are_not_numbers_do_not_count(op, junk, device):
    """One such token makes the mean of its image such, and so every similarity of that image."""
    tokens, scores = _clustered(2, 40, 8, torch.float32, device)
    expected = torch.cat([hard_top_k(scores[:1], 9), op(scores[1:], tokens[1:], 9, 0.5)])
    tokens[0, 3, 1] = junk
    assert torch.equal(op(scores, tokens, 9, 0.5), expected)


@pytest.mark.parametrize(
    ("k", "diversity", "words"),
    [
        (0, 0.5, "k=0 keeps no token; choose 1..4"),
        (5, 0.5, "k=5"),
        (2, 1.5, "diversity=1.5 must lie in 0..1"),
    ],
)
def test_bad_arguments_are_refused(k, diversity, words):
    with pytest.raises(ConfigError, match=words):
        diverse_top_k(torch.zeros(1, 4), torch.zeros(1, 4, 2), k, diversity)


def test_a_selector_keeps_its_diversity(tmp_path):
    torch.manual_seed(0)
    scorer = Scorer(12, ScorerConfig(hidden_size=8, num_heads=2))
    selector = Selector(scorer, diversity=0.4)
    tokens = torch.randn(2, 20, 12)
    kept, positions = selector.select(tokens, 6)
    relevance = on_scale(selector.relevance, selector.score(tokens), None)
    assert torch.equal(positions, diverse_top_k(relevance, tokens, 6, 0.4))
    assert torch.equal(kept, tokens.gather(1, positions[..., None].expand(-1, -1, 12)))
    selector.save_pretrained(tmp_path)
    assert Selector.from_pretrained(tmp_path).diversity == 0.4
    with pytest.raises(ConfigError, match="diversity=-1"):
        selector.diversity = -1
