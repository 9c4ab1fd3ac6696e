import pytest

from autoselect.config import ConfigError
from autoselect.evaluation.budgets import parse_budgets


def test_a_list_is_sorted_and_without_repeats():
    assert parse_budgets("32, 8,0.0555,16", 144) == (8, 16, 32)
    with pytest.raises(ConfigError, match="names no budget"):
        parse_budgets(" , ", 144)


@pytest.mark.parametrize("value", ["0", "577", "-0.1", "120%", "eight"])
def test_one_bad_entry_is_refused(value):
    with pytest.raises(ConfigError, match="budget="):
        parse_budgets(f"8,{value}", 576)
