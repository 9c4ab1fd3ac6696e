import time

import pytest
import torch
from fakes import FakeSelector, FakeVLM, make_samples

from autoselect.evaluation.latency import LatencyPlan, latency_report
from autoselect.evaluation.timing import measure


class DriftingMachine:
    """A clock in seconds of a machine that slows down by 1 % with every call."""

    def __init__(self):
        self.now, self.speed = 0.0, 1.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds * self.speed
        self.speed *= 1.01


def test_interleaving_cancels_a_drift_that_one_after_the_other_shows():
    machine = DriftingMachine()
    calls = {"a": lambda: machine.work(0.01), "b": lambda: machine.work(0.01)}
    timings = measure(calls, repeats=50, warmup=0, clock=machine)
    assert timings["a"].median / timings["b"].median == pytest.approx(1, abs=0.02)
    naive = DriftingMachine()
    first = measure({"a": lambda: naive.work(0.01)}, 50, 0, clock=naive)["a"].median
    second = measure({"b": lambda: naive.work(0.01)}, 50, 0, clock=naive)["b"].median
    assert second / first > 1.5


def test_a_known_sleep_is_recovered():
    timings = measure({"sleep": lambda: time.sleep(0.02)}, repeats=9, warmup=1)
    assert min(timings["sleep"].samples) >= 20.0
    assert len(timings["sleep"].samples) == 9
    summary = timings["sleep"].summary()
    assert summary["p5_ms"] <= summary["median_ms"] <= summary["p95_ms"]


def test_every_call_runs_once_per_round_in_turning_order():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    measure(calls, repeats=2, warmup=1)
    assert "".join(seen) == "abcbcacab"


def test_speedup_counts_the_selector(monkeypatch):
    from autoselect.evaluation import latency

    class Config:
        _attn_implementation = "sdpa"

        def get_text_config(self):
            return self

    vlm = FakeVLM()
    vlm.model = type("Model", (), {"config": Config()})()
    sample = make_samples(1)[0]
    plan = LatencyPlan((2, 8), batch_size=3, repeats=3, warmup=1)
    report = latency_report(vlm, FakeSelector(), sample.image, sample.questions[0], plan)
    assert [row["budget"] for row in report["pruned"]] == [2, 8]
    for row in report["pruned"]:
        whole = row["prefill_ms"] + row["selector_ms"]
        assert row["speedup"] == pytest.approx(report["full_prefill_ms"] / whole)
    assert set(report["timings"]) >= {"vision", "scorer", "full_prefill", "prefill@2", "selector@8"}
    assert "3 interleaved rounds after 1" in report["protocol"]
    assert report["peak_memory_bytes"] is None or torch.cuda.is_available()
    assert latency.attention_backend(vlm) == "sdpa"
