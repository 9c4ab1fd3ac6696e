"""Scorer and Denoiser: what each token may see, and their initial output."""

import pytest
import torch

from autoselect.config import DenoiserConfig, ScorerConfig
from autoselect.method.denoiser import Denoiser, DiagonalAttention
from autoselect.method.scorer import Scorer, standardise

WIDTH = 24


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return Scorer(WIDTH, ScorerConfig(hidden_size=16, num_layers=2, num_heads=2))


def trained_denoiser() -> Denoiser:
    """Return a Denoiser whose branches are not zero any more."""
    torch.manual_seed(0)
    denoiser = Denoiser(WIDTH, DenoiserConfig(num_layers=3, hidden_size=20))
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.3)
    return denoiser


def test_padded_tokens_do_not_change_the_scores_of_real_ones(scorer):
    tokens = random(2, 9, WIDTH)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    alone = scorer(tokens[1:, :5])
    padded = scorer(tokens * mask[..., None] + 7 * ~mask[..., None], mask)
    torch.testing.assert_close(padded[1:, :5], alone)


def test_a_score_depends_on_the_other_tokens_of_the_image(scorer):
    tokens = random(1, 6, WIDTH)
    other = tokens.clone()
    other[0, 5] = random(WIDTH, seed=9)
    assert not torch.allclose(scorer(tokens)[0, :5], scorer(other)[0, :5])


def test_a_score_does_not_depend_on_other_images(scorer):
    tokens = random(3, 6, WIDTH)
    torch.testing.assert_close(scorer(tokens)[1], scorer(tokens[1:2])[0])


def test_standardised_scores_have_mean_zero_and_variance_one_over_real_tokens():
    scores = 5 + 0.01 * random(4, 30)
    mask = torch.arange(30) < torch.tensor([[30], [20], [7], [2]])
    standard = standardise(scores, mask)
    for row in range(4):
        real = standard[row][mask[row]].double()
        assert abs(float(real.mean())) < 1e-4
        assert float(real.var(correction=0)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_padded_scores_may_be_anything(junk):
    scores, mask = random(3, 12), torch.arange(12) < torch.tensor([[12], [5], [0]])
    upstream, results = random(3, 12, seed=1), []
    for value in (0.0, junk):
        padded = scores.masked_fill(~mask, value).requires_grad_()
        standard = standardise(padded, mask)
        standard.backward(upstream)
        results.append((standard.detach(), padded.grad))
    assert all(map(torch.equal, *results))
    assert (results[0][0][~mask] == 0).all() and (results[0][1][~mask] == 0).all()


def test_equal_scores_stay_finite():
    scores = torch.full((1, 8), 3.0, requires_grad=True)
    standardise(scores).square().sum().backward()
    assert torch.isfinite(scores.grad).all()


def test_the_denoiser_starts_as_the_identity():
    tokens = random(2, 5, WIDTH)
    assert torch.equal(Denoiser(WIDTH, DenoiserConfig())(tokens), tokens)


def test_without_layers_the_denoiser_is_the_identity():
    tokens = random(2, 5, WIDTH)
    assert Denoiser(WIDTH, DenoiserConfig(num_layers=0))(tokens) is tokens


def test_a_denoiser_token_sees_only_itself():
    denoiser = trained_denoiser()
    tokens = random(1, 6, WIDTH).requires_grad_()
    denoiser(tokens)[0, 2].sum().backward()
    reached = tokens.grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [False, False, True, False, False, False]


def test_a_token_of_the_global_denoiser_sees_the_real_tokens_of_its_image_alone():
    torch.manual_seed(0)
    config = DenoiserConfig(num_layers=1, hidden_size=128, attention="global")
    denoiser = Denoiser(WIDTH, config)
    assert torch.equal(denoiser(random(2, 5, WIDTH)), random(2, 5, WIDTH)), "starts as identity"
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.3)
    tokens = random(2, 6, WIDTH).requires_grad_()
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    denoiser(tokens, mask)[0, 2].sum().backward()
    reached = tokens.grad.abs().sum(-1) > 0
    assert reached.tolist() == [[True] * 4 + [False] * 2, [False] * 6]


def test_diagonal_attention_is_full_attention_with_a_diagonal_mask():
    torch.manual_seed(0)
    attention = DiagonalAttention(WIDTH, 16)
    torch.nn.init.normal_(attention.output.weight)
    tokens = random(2, 7, WIDTH)
    query, key = random(2, 7, 16, seed=1), random(2, 7, 16, seed=2)
    only_itself = torch.full((7, 7), -torch.inf).fill_diagonal_(0.0)
    weights = (query @ key.transpose(1, 2) + only_itself).softmax(-1)
    expected = attention.output(weights @ attention.value(tokens))
    torch.testing.assert_close(attention(tokens), expected)
