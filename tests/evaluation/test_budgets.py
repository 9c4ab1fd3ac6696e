import pytest

from autoselect.config import ConfigError
from autoselect.evaluation.budgets import parse_budgets, token_budget


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ("64", 64),
        (" 64 ", 64),
        ("11.1%", 64),
        ("0.111", 64),
        ("100%", 576),
        ("1.0", 576),
        ("0.01%", 1),
    ],
)
def test_tokens_ratios_and_percentages_mean_the_same(value, tokens):
    assert token_budget(value, 576) == tokens


@pytest.mark.parametrize("value", ["0", "577", "-1", "-0.1", "120%", "eight", "", "nan%", "inf%"])
def test_other_values_are_refused_with_the_range(value):
    with pytest.raises(ConfigError, match="576|is no number|as a share"):
        token_budget(value, 576)


def test_a_list_is_sorted_and_without_repeats():
    assert parse_budgets("32, 8,0.0555,16", 144) == (8, 16, 32)
    with pytest.raises(ConfigError, match="names no budget"):
        parse_budgets(" , ", 144)
