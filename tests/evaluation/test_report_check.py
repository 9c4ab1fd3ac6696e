"""A report is refused, by the name of the place, for whatever is not as promised."""

import copy
import json

import pytest

from autoselect.evaluation.answers.answering import Plan, answer_part
from autoselect.evaluation.latency.environment import environment
from autoselect.evaluation.methods.registry import choose_methods, selector_method
from autoselect.evaluation.report.build import build_report
from autoselect.evaluation.report.check import check_report
from autoselect.evaluation.report.schema import Report
from tests.evaluation.fakes import GRID, FakeAsked, FakeSelector, make_samples

BUDGETS = (2, 6)
LATENCY = {
    "full_prefill_ms": 4.0,
    "pruned": [
        {"budget": budget, "prefill_ms": 2.0, "selector_ms": 1.0, "speedup": 2.0}
        for budget in BUDGETS
    ],
}


@pytest.fixture(scope="module")
def sound():
    samples = make_samples(12)
    methods = (selector_method(FakeSelector()), *choose_methods("grid,norm", 1))
    plan = Plan(methods, BUDGETS, GRID * GRID)
    more = {
        "environment": environment(),
        "digests": {"model": "m", "selector": "s", "data": "d"},
    }
    answers = answer_part(FakeAsked(), samples, plan)
    return build_report(samples, answers, plan, "fake", LATENCY, more)


def changed(report, path, value):
    """Return a copy with another value at a path; `...` in place of the value removes it."""
    report = copy.deepcopy(report)
    *steps, last = path
    place = report
    for step in steps:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return report


def test_a_sound_report_passes_also_after_json(sound):
    check_report(sound)
    check_report(json.loads(json.dumps(sound)))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("intervals",), ..., "lacks 'intervals'"),
        (("environment",), ..., "lacks 'environment'"),
        (("digests",), ..., "lacks 'digests'"),
        (("digests", "model"), ..., "digests lacks 'model'"),
        (
            ("environment", "git_commit"),
            3,
            "environment.git_commit=3: input should be a valid string",
        ),
        (("rows",), [], r"rows=\[\]: list should have at least 1 item"),
        (("rows", 0, "tasks"), ..., r"rows\[0\] lacks 'tasks'"),
        (("rows", 1, "budget"), "8", r"rows\[1\].budget='8': input should be a valid integer"),
        (("rows", 1, "budget"), 37, "exceeds the 36 tokens"),
        (("rows", 1, "mean"), 7.0, r"rows\[1\].mean=7.0: input should be less than or equal to 1"),
        (("rows", 1, "mean"), 0.123, r"rows\[1\].*mean=0.123 is not the mean of its tasks"),
        (
            ("rows", 2, "retention"),
            "lots",
            r"rows\[2\].retention='lots': input should be a valid num",
        ),
        (("rows", 2, "retention"), 950, r"rows\[2\].*retention=950 does not follow"),
        (("rows", 2, "retention"), None, r"rows\[2\].*retention=None does not follow"),
        (("rows", 0, "retention_ci95"), [0.9, 0.1], r"rows\[0\].*ends before it begins"),
        (
            ("rows", 0, "retention_ci95"),
            [0.9],
            r"retention_ci95=\[0.9\]: list should have at least 2 items",
        ),
        (("rows", 0, "retention_ci95"), [None, None], r"rows\[0\].*lacks an end"),
        (("rows", 0, "tasks", "short"), ..., r"rows\[0\].*tasks are \['long'\]"),
        (("rows", 0, "retention_tasks", "short"), 0.01, "retention_tasks.short does not follow"),
        (("intervals", 1), ..., "intervals lack norm with 2 tokens"),
        (("intervals", 0, "difference"), 0.9, r"intervals\[0\].*difference=0.9 is not that"),
        (("intervals", 0, "against"), "luck", r"intervals\[0\] \(luck, 2 tokens\) matches no row"),
        (("intervals", 0, "ci95"), [0.5, 0.1], "ends before it begins"),
        (
            ("latency", "pruned", 0, "speedup"),
            None,
            r"latency.pruned\[0\].speedup=None: input should",
        ),
        (("latency", "pruned", 0, "speedup"), 3.0, r"latency.pruned\[0\].speedup=3.0 does not"),
        (("latency", "pruned", 1), ..., "latency.pruned lacks autoselect with 6 tokens"),
        (("full", "mean"), True, "full.mean=True: input should be a valid number"),
        (("blind", "tasks"), {"short": 0.1}, r"blind.tasks are \['short'\]"),
    ],
)
def test_what_is_not_as_promised_is_refused_by_its_place(sound, path, value, message):
    with pytest.raises(ValueError, match=message):
        check_report(changed(sound, path, value))


def test_methods_left_out_have_a_reason_and_no_rows(sound):
    reason = {"method": "fastv", "reason": "the model gives no attention"}
    check_report({**sound, "left_out": [reason]})
    with pytest.raises(ValueError, match=r"left_out\[0\] lacks 'reason'"):
        check_report({**sound, "left_out": [{"method": "fastv"}]})
    with pytest.raises(ValueError, match=r"left_out\[0\] \(grid\) has rows"):
        check_report({**sound, "left_out": [{**reason, "method": "grid"}]})


def test_speedups_of_the_attached_call_follow_from_its_times(sound):
    times = {"prefill_ms": 2.0, "first_token_ms": 3.0, "selector_ms": 0.5}
    pruned = [
        {**times, "budget": budget, "speedup": 2.0, "speedup_with_vision": 3.0}
        for budget in BUDGETS
    ]
    latency = {"full_prefill_ms": 4.0, "full": {"first_token_ms": 9.0}, "pruned": pruned}
    check_report({**sound, "latency": latency})
    pruned[1]["speedup_with_vision"] = 1.5
    with pytest.raises(ValueError, match=r"pruned\[1\].speedup_with_vision=1.5 does not follow"):
        check_report({**sound, "latency": latency})


def test_a_contradicted_verdict_is_refused(sound):
    better = sound["intervals"][0]["better"]
    with pytest.raises(ValueError, match=r"intervals\[0\].*better=.* contradicts its interval"):
        check_report(changed(sound, ("intervals", 0, "better"), not better))


def test_the_schema_can_be_given_to_other_programs():
    schema = Report.model_json_schema()
    assert {"model", "rows", "intervals", "latency", "digests"} <= set(schema["required"])
    assert schema["$defs"]["MethodScores"]["properties"]["mean"]["maximum"] == 1
