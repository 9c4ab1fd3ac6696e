"""Agreement with the full model's answers by hand, and the weights that it chooses."""

import pytest

from autoselect.evaluation.asking.replies import Reply
from autoselect.pruning.diversity import DiversityCurve, TunedWeight
from autoselect.tuning.agreement import (
    Measured,
    TunedBudget,
    agreement_table,
    agrees,
    best_diversity,
    measure,
)

RED, BLUE = Reply("red", 2, True, 0.5), Reply("blue", 2, True, 0.5)
ENDLESS = Reply("red", 16, False, 2.0)


def test_an_answer_agrees_if_text_and_end_are_the_full_models():
    assert agrees(RED, Reply("red", 2, True, 9.0))
    assert not agrees(BLUE, RED)
    assert not agrees(ENDLESS, RED), "the right words without an end"
    assert agrees(ENDLESS, ENDLESS), "the full model does not end either"


def test_agreement_is_counted_over_questions_of_every_image():
    full = [[RED, BLUE], [RED]]
    table = agreement_table([[RED, RED], [RED]], full)
    assert table.sums[:, 0].tolist() == [1, 1] and table.counts[:, 0].tolist() == [2, 1]
    assert table.mean() == pytest.approx(2 / 3)


def test_every_weight_is_measured_at_every_budget():
    full = [[RED], [BLUE], [RED], [RED]]
    columns = {
        (8, 0.0): [[ENDLESS], [BLUE], [ENDLESS], [ENDLESS]],
        (8, 0.7): [[RED], [BLUE], [RED], [ENDLESS]],
        (16, 0.0): full,
        (16, 0.7): full,
    }
    small, large = measure(columns, full, 100, "abcd")
    assert (small.budget, small.share, large.share) == (8, 0.08, 0.16)
    assert [one.agreement for one in small.measured] == [0.25, 0.75]
    assert [one.unended for one in small.measured] == [0.75, 0.25]
    assert small.measured[0].loss == pytest.approx((3 * 2.0 + 0.5) / 4)
    low, high = small.measured[1].ci95
    assert low < 0.75 < high
    assert large.measured[0].ci95 == (1.0, 1.0)
    assert small.best.weight == 0.7


def entry(weight, agreement, loss):
    return Measured(weight, agreement, (0.0, 1.0), 0.0, loss)


def test_likelihood_decides_between_equal_agreements():
    one = TunedBudget(8, 0.1, (entry(0.4, 0.8, 0.3), entry(0.6, 0.8, 0.2), entry(0.8, 0.7, 0.1)))
    other = TunedBudget(16, 0.2, (entry(0.4, 0.9, 0.3), entry(0.6, 0.8, 0.2)))
    assert best_diversity([one, other]) == DiversityCurve(
        (TunedWeight(0.1, 0.6), TunedWeight(0.2, 0.4))
    )


def test_hard_top_k_stays_if_it_is_best_at_every_budget():
    one = TunedBudget(8, 0.1, (entry(0.0, 0.8, 0.2), entry(0.6, 0.7, 0.2)))
    assert best_diversity([one]) == 0.0
