"""Calibrated noise has the mean and covariance of the tokens."""

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.method.statistics import TokenStatistics, calibrate


@pytest.fixture
def tokens():
    """Return tokens that lie mostly in 3 of 10 dimensions."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 10, generator=generator)
    low = torch.randn(4000, 3, generator=generator) @ basis
    return low + 0.1 * torch.randn(4000, 10, generator=generator) + torch.arange(10)


def test_batches_give_the_statistics_of_their_union(tokens):
    together = calibrate([tokens], None)
    apart = calibrate([tokens[:100], tokens[100:1000], tokens[1000:]], None)
    torch.testing.assert_close(together.mean, tokens.mean(0))
    torch.testing.assert_close(apart.mean, together.mean)
    torch.testing.assert_close(apart.std, together.std)
    torch.testing.assert_close(together.std, tokens.std(0, correction=0), rtol=1e-4, atol=1e-5)
    assert together.factor is None


@pytest.mark.parametrize("rank", [1, 3, 10, 64])
def test_factor_and_deviation_keep_every_channels_variance(tokens, rank):
    statistics = calibrate([tokens], rank)
    variance = statistics.std.square() + statistics.factor.square().sum(0)
    torch.testing.assert_close(variance, tokens.var(0, correction=0), rtol=1e-4, atol=1e-4)
    assert statistics.factor.shape == (min(rank, 10), 10)


def test_enough_rank_matches_the_whole_covariance(tokens):
    statistics = calibrate([tokens], 10)
    covariance = statistics.factor.T @ statistics.factor + statistics.std.square().diag()
    torch.testing.assert_close(covariance, tokens.T.cov(correction=0), rtol=1e-3, atol=1e-3)
    eigenvalues = torch.linalg.eigvalsh(tokens.double().T.cov(correction=0))
    ratio = float(eigenvalues.sum().square() / eigenvalues.square().sum())
    assert statistics.participation_ratio == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.1, 1.0, 1e4])
@pytest.mark.parametrize("count", [2, 10, 5000])
def test_constant_tokens_fill_no_dimension(scale, count):
    token = scale * torch.randn(1, 64, generator=torch.Generator().manual_seed(count))
    for rank in (None, 3):
        assert calibrate([token.expand(count, 64)], rank).participation_ratio == 0.0
    line = token + scale * 1e-3 * torch.arange(count)[:, None]
    assert calibrate([line], 3).participation_ratio == pytest.approx(1.0 if scale else 0.0, 1e-3)


def test_statistics_survive_storage(tokens):
    for rank in (None, 4):
        statistics = calibrate([tokens], rank)
        again = TokenStatistics.from_tensors(statistics.tensors())
        assert torch.equal(again.mean, statistics.mean)
        assert torch.equal(again.std, statistics.std)
        assert (again.factor is None) == (rank is None)


def test_useless_tokens_are_refused():
    with pytest.raises(ConfigError, match="fewer than two"):
        calibrate([], None)
    with pytest.raises(ConfigError, match="not finite"):
        calibrate([torch.full((4, 3), torch.nan)], None)
