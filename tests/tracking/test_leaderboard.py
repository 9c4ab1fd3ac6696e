"""What an experiment's page says of its evaluations."""

import json

from autoselect.tracking import Tracker
from autoselect.tracking.leaderboard import OWN_TEXT, Standing, metric_at, note
from tests.tracking.runs import client, start


def evaluation_of(selector, retentions, data="24 images", diversity=None, others=()):
    """Return the run of a finished evaluation, as `autoselect eval` logs it.

    `others` has the retention at 64 tokens of further rows by name.
    """
    tags = {"kind": "evaluation", "model": "tiny", "data": data, "selector": selector}
    run = Tracker.start("project", f"eval {selector}", {"diversity": diversity}, tags)
    for name, value in dict(others).items():
        run.log_metrics({f"{metric_at('retention', 64)}/{name}": value})
        run.log_metrics({f"{metric_at('retention_low', 64)}/{name}": value - 0.02})
        run.log_metrics({f"{metric_at('retention_high', 64)}/{name}": value + 0.02})
        run.log_metrics({f"{metric_at('speedup', 64)}/{name}": 1.75})
    for budget, value in retentions.items():
        run.log_metrics({metric_at("retention", budget): value})
        run.log_metrics({metric_at("retention_low", budget): value - 0.01})
        run.log_metrics({metric_at("retention_high", budget): value + 0.01})
        run.log_metrics({metric_at("speedup", budget): 2.5})
    run.rank_selectors("project")
    run.finish()
    return run.run_id


def test_the_experiment_says_which_selector_is_best_at_which_budget():
    evaluation_of("other", {64: 0.5}, data="3 images")
    small, large = evaluation_of("small", {64: 0.91, 128: 0.97}), None
    experiment = client().get_experiment_by_name("project").experiment_id
    first = client().get_experiment(experiment).tags["mlflow.note.content"]
    assert first.startswith("**Best selector** K=64 small 91.0 %, 2.50 x; K=128")
    client().set_experiment_tag(experiment, "mlflow.note.content", f"{first}\n\nOur own words.")
    large = evaluation_of("large", {64: 0.95})
    tags = client().get_experiment(experiment).tags
    text = tags["mlflow.note.content"]
    assert text.splitlines()[0] == (
        "**Best selector** K=64 large 95.0 %, 2.50 x; K=128 small 97.0 %, 2.50 x"
    )
    assert "| 64 | large | 95.0 % (94.0 to 96.0) | 2.50 |" in text
    assert text.endswith("Our own words.") and text.count("Our own words.") == 1
    assert text.index(large) < text.index(small), "best first"
    assert text.index("tiny, 24 images") < text.index("tiny, 3 images"), "latest data first"
    view = json.loads(tags["mlflow.sharedViewState.selectors"])
    state = json.loads(view["state"])
    assert "metrics.`retention_at_64_tokens`" in state["selectedColumns"]
    assert state["orderByKey"] == "metrics.`retention_at_64_tokens`" and not state["orderByAsc"]


def page():
    return client().get_experiment_by_name("project").tags["mlflow.note.content"]


def test_the_answer_counts_the_latest_evaluation_of_a_selector_as_the_table_does():
    evaluation_of("mine", {64: 0.95})
    evaluation_of("mine", {64: 0.90})
    assert page().startswith("**Best selector** K=64 mine 90.0 %")
    assert "95.0 %" not in page()


def test_rows_of_a_diversity_belong_to_the_selector_of_their_evaluation():
    evaluation_of("one", {64: 0.90}, diversity="0,own,0.4", others={"diversity-own": 0.95})
    evaluation_of("two", {64: 0.80}, diversity="0,own", others={"diversity-own": 0.93})
    evaluation_of("two", {64: 0.94}, others={"small-diversity-own": 0.5, "large-diversity-0": 0.6})
    names = [line.split(" | ")[1] for line in page().splitlines() if line.startswith("| 64 |")]
    assert names == [
        "one",
        "two",
        "one diversity-0",
        "two diversity-0",
        "large-diversity-0",
        "small",
    ]
    assert "two | 94.0 %" in page(), "a run without diversities has the selector's own"
    assert "| one | 95.0 % (93.0 to 97.0) | 1.75 |" in page(), "each row has its own cost"


def test_what_was_measured_in_another_way_or_on_another_model_of_the_name_stands_apart():
    for digest, params in (
        ("a" * 64, {}),
        ("a" * 64, {"reference": "model"}),
        ("a" * 64, {"scoring": "likelihood", "reference": "answers"}),
        ("b" * 64, {}),
    ):
        tags = {"kind": "evaluation", "model": "tiny", "data": "9 images", "selector": "one"}
        run = Tracker.start("project", "eval", params, tags | {"model_digest": digest})
        run.log_metrics({metric_at("retention", 64): 0.9})
        run.rank_selectors("project")
        run.finish()
    heads = {line for line in page().splitlines() if line.startswith("####")}
    assert heads == {
        "#### tiny (aaaaaaaa), 9 images",
        "#### tiny (aaaaaaaa), 9 images, reference=model",
        "#### tiny (aaaaaaaa), 9 images, scoring=likelihood",
        "#### tiny (bbbbbbbb), 9 images",
    }


def test_an_evaluation_that_failed_is_not_ranked():
    run = Tracker.start("project", "eval", tags={"kind": "evaluation"})
    run.log_metrics({metric_at("retention", 8): 0.5})
    run.finish("FAILED")
    other = start()
    other.rank_selectors("project")
    other.finish()
    assert "mlflow.note.content" not in client().get_experiment_by_name("project").tags


def test_a_long_history_leaves_room_for_what_a_person_wrote():
    """MLflow takes 20,000 characters."""
    found = [
        Standing(
            ("tiny", f"data {i // 50}"), f"selector {i}", 8 * (i % 5 + 1), 0.9, "88 to 92", 2.0
        )
        for i in range(600)
    ]
    text = note(found, "1", f"**Best selector** none\n{OWN_TEXT}\n\nOur own words.")
    assert len(text) < 20000 and text.endswith("Our own words.")
    assert "tiny, data 0" in text and "tiny, data 11" not in text
