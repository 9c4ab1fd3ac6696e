import time

import pytest
import torch

from autoselect.evaluation.latency import protocol as latency
from autoselect.evaluation.latency.bench import bench_lines, fixed_image
from autoselect.evaluation.latency.protocol import LatencyPlan, kv_cache_bytes, latency_report
from autoselect.evaluation.latency.stages import Prompt, decode_call, kept_sequences, vision_calls
from autoselect.evaluation.latency.timing import measure
from autoselect.evaluation.loading import load_pair


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
    assert summary["samples_ms"] == pytest.approx(timings["sleep"].samples, abs=1e-4)


def test_every_call_runs_once_per_round_in_turning_order():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    measure(calls, repeats=2, warmup=1)
    assert "".join(seen) == "abcbcacab"


@pytest.fixture(scope="module")
def pair(model_folder, selector_folder):
    return load_pair(model_folder, selector_folder, "cpu")


def test_stages_are_apart_and_the_speedup_counts_the_selector(pair):
    vlm, selector = pair
    plan = LatencyPlan((8, 32), batch_size=2, repeats=3, warmup=1)
    report = latency_report(vlm, selector, fixed_image(), "is there a star ?", plan)
    assert [row["budget"] for row in report["pruned"]] == [8, 32]
    for row in report["pruned"]:
        whole = row["prefill_ms"] + row["selector_ms"]
        assert row["speedup"] == pytest.approx(report["full_prefill_ms"] / whole)
        first = report["full"]["first_token_ms"] / row["first_token_ms"]
        assert row["speedup_first_token"] == pytest.approx(first)
        assert min(row[f"{stage}_ms"] for stage in ("select", "llm", "decode")) > 0
    stages = {"vision", "tower", "projector", "scorer", "full_prefill", "full_llm", "full_decode"}
    assert set(report["timings"]) >= stages | {"prefill@8", "selector@8", "select@8", "decode@32"}
    assert min(report[f"{stage}_ms"] for stage in ("vision", "tower", "projector")) > 0
    assert "3 interleaved rounds after 1" in report["protocol"] and report["attention"] == "sdpa"
    assert report["peak_memory_bytes"] is None or torch.cuda.is_available()
    assert report["compiled"] is None


def test_replayed_tower_and_projector_give_the_visual_tokens(pair):
    vlm, selector = pair
    prompt = Prompt.of(vlm, [fixed_image()] * 2, ["a ?", "b ?"])
    with torch.inference_mode():
        calls = vision_calls(vlm, prompt)
        projected = calls["projector"]()
    torch.testing.assert_close(projected.reshape(prompt.tokens.shape), prompt.tokens)


def test_a_decoding_step_continues_the_prompt_and_can_be_repeated(pair):
    vlm, selector = pair
    prompt = Prompt.of(vlm, [fixed_image()] * 2, ["is there a star ?", "a ?"])
    longer = {
        "input_ids": torch.cat([prompt.text["input_ids"], torch.zeros(2, 1).long()], dim=1),
        "attention_mask": torch.cat([prompt.text["attention_mask"], torch.ones(2, 1).long()], 1),
    }
    for _, tokens, positions in kept_sequences(selector, prompt, (8,)):
        decode = decode_call(vlm, vlm.prefix(prompt.text, tokens, positions))
        expected = vlm.prefill(vlm.prefix(longer, tokens, positions))
        with torch.inference_mode():
            torch.testing.assert_close(decode(), expected, atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(decode(), expected, atol=1e-4, rtol=1e-3)


def test_cache_bytes_are_those_of_the_cache(pair):
    vlm, _ = pair
    prompt = Prompt.of(vlm, [fixed_image()] * 2, ["a ?", "b ?"])
    prefix = vlm.prefix(prompt.text, prompt.tokens, None)
    with torch.inference_mode():
        cache = vlm.model.model(**prefix, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes(vlm, prefix["inputs_embeds"].shape[1], 2) == held


def test_the_peak_of_a_prefill_is_taken_before_other_calls_hold_caches(pair, monkeypatch):
    vlm, selector = pair
    order, answers = [], latency.answer_calls

    def peak(memory, call):
        order.append("peak")
        memory.highest = len(order)
        return len(order)

    def answer_calls(*arguments):
        order.append("caches")
        return answers(*arguments)

    monkeypatch.setattr(latency._Memory, "peak", peak)
    monkeypatch.setattr(latency, "answer_calls", answer_calls)
    plan = LatencyPlan((8, 32), repeats=1, warmup=0)
    report = latency_report(vlm, selector, fixed_image(), "a ?", plan)
    assert order == ["peak"] * 3 + ["caches"]
    assert report["full"]["peak_memory_bytes"] == 1
    assert [row["peak_memory_bytes"] for row in report["pruned"]] == [2, 3]
    assert report["peak_memory_bytes"] == 3


def test_compiled_calls_stand_beside_the_eager_ones(pair, monkeypatch):
    """With an identity in place of the compiler: what is compiled, and how it is reported."""
    compiled = []

    def compiler(function, mode, dynamic):
        compiled.append((function.__name__, mode, dynamic))
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    vlm, selector = pair
    plan = LatencyPlan((8,), repeats=2, warmup=0, compiled=True)
    report = latency_report(vlm, selector, fixed_image(), "a ?", plan)
    assert compiled == [("prefill", "default", False), ("select", "default", False)]
    (row,) = report["compiled"]["pruned"]
    whole = row["prefill_ms"] + row["selector_ms"]
    assert row["speedup"] == pytest.approx(report["compiled"]["full_prefill_ms"] / whole)
    lines = bench_lines({"num_tokens": 144, "runs": [report]})
    assert "torch.compile: full prefill" in "\n".join(lines)
