"""Schedules are pure functions that start and end at the configured values."""

from dataclasses import replace

import pytest

from autoselect.config import GateConfig, OptimizerConfig
from autoselect.method.schedules import (
    learning_rate,
    temperature,
    token_budget,
)


def test_the_learning_rate_warms_up_peaks_and_ends_at_its_floor():
    config = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.1, floor_fraction=0.3)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.3)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_the_temperature_reaches_its_end_early_and_stays():
    config = GateConfig(temperature_start=0.5, temperature_end=0.02, anneal_fraction=0.4)
    values = [temperature(config, step, 100) for step in range(100)]
    assert values[0] == 0.5
    assert values[20] == pytest.approx((0.5 * 0.02) ** 0.5)
    assert values[40:] == pytest.approx([0.02] * 60)


def test_no_annealing_is_the_final_temperature_from_the_start():
    assert temperature(GateConfig(anneal_fraction=0.0), 0, 10) == 0.02


def test_drawn_budgets_cover_the_range_and_depend_on_seed_and_step_only():
    config = GateConfig(token_budget=16, min_token_budget=4)
    drawn = [token_budget(config, 1, step) for step in range(2000)]
    assert set(drawn) == set(range(4, 17))
    assert drawn == [token_budget(config, 1, step) for step in range(2000)]
    assert drawn != [token_budget(config, 2, step) for step in range(2000)]


@pytest.mark.parametrize(("low", "tokens"), [(0.375, 6), (6, 6), (0.01, 1), (None, None)])
def test_the_lowest_budget_is_a_share_or_a_count(low, tokens):
    assert GateConfig(token_budget=16, min_token_budget=low).lowest_budget == tokens


def test_by_default_the_lowest_budget_follows_the_budget():
    budgets = (1, 3, 16, 192)
    assert [GateConfig(token_budget=k).lowest_budget for k in budgets] == [1, 1, 6, 72]
    changed = [replace(GateConfig(), token_budget=k) for k in budgets]
    assert changed == [GateConfig(token_budget=k) for k in budgets]


def test_a_fixed_budget_stays():
    config = GateConfig(token_budget=16, min_token_budget=None)
    assert {token_budget(config, 0, step) for step in range(50)} == {16}


def test_a_cosine_decay_is_half_way_down_in_the_middle():
    config = GateConfig(
        temperature_start=2.0,
        temperature_end=0.1,
        temperature_decay="cosine",
        anneal_fraction=0.5,
    )
    values = [temperature(config, step, 100) for step in range(100)]
    assert values[0] == 2.0
    assert values[25] == pytest.approx(1.05)
    assert values[50:] == pytest.approx([0.1] * 50)
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))
