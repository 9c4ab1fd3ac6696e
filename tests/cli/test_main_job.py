"""The main job in small, with documented commands: shards, two ranks, evaluation, report."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from autoselect.pruning.selector import Selector
from tests.launching import call, free_port, train

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "autoselect" / "reference" / "model"
STEPS = 2
SETTINGS = (
    *("--deepspeed", str(ROOT / "configs" / "deepspeed" / "zero2.json")),
    *("--data.train_shards=shards/train-*.tar", "--output=run", f"--steps={STEPS}"),
    *("--gate.calibration_images=32", "--tune_images=2", "--tune_budgets=6%,11%"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    sizes = ["--train", "64", "--val", "1", "--test", "6"]
    call(folder, "autoselect", "reference", "shards", "--out", "shards", *sizes)
    before = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    launcher = ("deepspeed", "--num_gpus=2", f"--master_port={free_port()}")
    call(folder, *launcher, str(ROOT / "autoselect" / "train.py"), *SETTINGS)
    after = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert before == after
    call(
        folder,
        *("autoselect", "eval", "--model", str(MODEL), "--selector", "run/selector"),
        *("--shards", "shards/test-*.tar", "--budgets", "8,144", "--methods", "random"),
        "--random-seeds=1",
        *("--latency-repeats", "2", "--out", "evaluation"),
    )
    return folder


def test_training_exports_a_selector_and_its_resolved_configuration(finished):
    selector = Selector.from_pretrained(finished / "run" / "selector")
    assert selector.width == 192
    assert selector.metadata["steps"] == STEPS
    tuned = selector.metadata["tuning"]
    assert (tuned["images"], tuned["held_out"]) == (2, 0), "every row was trained on"
    report = json.loads((finished / "run" / "tune" / "tune.json").read_text())
    assert {row["selection"] for row in report["gaps"]} == {"scores", "selected"}
    assert all("removal/gap" in row for row in report["gaps"])
    resolved = yaml.safe_load((finished / "run" / "config.yaml").read_text())
    assert resolved["train"]["steps"] == STEPS
    assert resolved["deepspeed"]["zero_optimization"]["stage"] == 2


def test_a_finished_run_started_again_trains_no_further(finished):
    weights = (finished / "run" / "selector" / "selector.safetensors").read_bytes()
    assert f"resuming at step {STEPS} of {STEPS}" in train(finished, 1, *SETTINGS)
    assert (finished / "run" / "selector" / "selector.safetensors").read_bytes() == weights


def test_the_report_has_the_shape_that_others_rely_on(finished):
    report = json.loads((finished / "evaluation" / "report.json").read_text())
    assert report["num_tokens"] == 144
    assert set(report["full"]) >= {"mean", "tasks"}
    assert set(report["blind"]["tasks"]) == set(report["full"]["tasks"])
    assert len(report["full"]["tasks"]) == 5
    methods = {(row["method"], row["budget"]) for row in report["rows"]}
    assert methods == {(m, b) for m in ("autoselect", "random") for b in (8, 144)}
    for row in report["rows"]:
        low, high = row["retention_ci95"]
        assert low <= row["retention"] <= high
        if row["budget"] == 144:
            assert row["retention"] == 1.0 and row["tasks"] == report["full"]["tasks"]
    assert report["latency"]["full_prefill_ms"] > 0
    for pruned in report["latency"]["pruned"]:
        full = report["latency"]["full_prefill_ms"]
        assert pruned["speedup"] == pytest.approx(full / pruned["prefill_ms"])
    assert (finished / "evaluation" / "report.md").is_file()
    assert len(list((finished / "evaluation" / "figures").glob("*.png"))) >= 2


def test_both_runs_are_tracked(finished):
    assert (finished / "mlflow.db").is_file()
