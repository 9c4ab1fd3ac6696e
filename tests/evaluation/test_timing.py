import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from autoselect.evaluation.latency import protocol as latency
from autoselect.evaluation.latency.bench import bench_lines, fixed_image
from autoselect.evaluation.latency.caches import cache_bytes, decode_calls, filled_cache
from autoselect.evaluation.latency.calls import Prompt, attached, vision_calls
from autoselect.evaluation.latency.protocol import LatencyPlan, Rounds, latency_report
from autoselect.evaluation.latency.timing import Call, measure
from autoselect.evaluation.loading import load_pair
from autoselect.vlm import VisualAdapter
from tests.vlm import tiny
from tests.vlm.stock import model_of, selector


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
    calls = {name: Call(lambda: machine.work(0.01)) for name in "ab"}
    timings = measure(calls, repeats=50, warmup=0, clock=machine)
    assert timings["a"].median / timings["b"].median == pytest.approx(1, abs=0.02)
    naive = DriftingMachine()
    first = measure({"a": Call(lambda: naive.work(0.01))}, 50, 0, clock=naive)["a"].median
    second = measure({"b": Call(lambda: naive.work(0.01))}, 50, 0, clock=naive)["b"].median
    assert second / first > 1.5


def test_a_known_sleep_is_recovered():
    timings = measure({"sleep": Call(lambda: time.sleep(0.02))}, repeats=9, warmup=1)
    assert min(timings["sleep"].samples) >= 20.0
    assert len(timings["sleep"].samples) == 9
    summary = timings["sleep"].summary()
    assert summary["p5_ms"] <= summary["median_ms"] <= summary["p95_ms"]
    assert summary["samples_ms"] == pytest.approx(timings["sleep"].samples, abs=1e-4)


def test_every_call_runs_once_per_round_in_turning_order():
    seen = []
    calls = {name: Call(lambda name=name: seen.append(name)) for name in "abc"}
    measure(calls, repeats=2, warmup=1)
    assert "".join(seen) == "abcbcacab"


@pytest.fixture(scope="module")
def pair(model_folder, selector_folder):
    return load_pair(model_folder, selector_folder, "cpu")


def test_what_is_around_a_call_is_outside_the_clock():
    machine = DriftingMachine()

    @contextmanager
    def around():
        machine.work(5.0)
        yield
        machine.work(5.0)

    timings = measure({"a": Call(lambda: machine.work(0.01), around)}, 1, 0, clock=machine)
    assert timings["a"].median == pytest.approx(10, rel=0.02)


def test_stages_are_apart_and_the_speedup_is_that_of_the_attached_call(pair):
    vlm, selector = pair
    plan = LatencyPlan((8, 32), 2, Rounds(3, 1))
    report = latency_report(vlm, {"autoselect": selector}, fixed_image(), "is there a star ?", plan)
    assert [row["budget"] for row in report["pruned"]] == [8, 32]
    for row in report["pruned"]:
        assert row["speedup"] == pytest.approx(report["full_prefill_ms"] / row["prefill_ms"])
        first = report["full"]["first_token_ms"] / row["first_token_ms"]
        assert row["speedup_with_vision"] == pytest.approx(first)
        assert min(row[f"{stage}_ms"] for stage in ("selector", "decode")) > 0
    stages = {"vision", "tower", "projector", "scorer", "full_prefill", "full_decode"}
    assert set(report["timings"]) >= stages | {"prefill@8", "selector@8", "decode@32"}
    assert min(report[f"{stage}_ms"] for stage in ("vision", "tower", "projector")) > 0
    assert "3 interleaved rounds after 1" in report["protocol"] and report["attention"] == "sdpa"
    assert report["peak_memory_bytes"] is None or torch.cuda.is_available()
    assert report["compiled"] is None
    assert getattr(vlm.model, "autoselect", None) is None, "the model is what it was"


def test_further_selectors_are_timed_in_the_same_rounds(pair):
    """The weight of diversity changes the choice, so its cost is not that of hard top-K."""
    vlm, selector = pair
    plan = LatencyPlan((8, 32), 2, Rounds(3, 1))
    selectors = {"autoselect": selector, "autoselect:diversity-0.5": selector.like(0.5)}
    report = latency_report(vlm, selectors, fixed_image(), "is there a star ?", plan)
    places = [(row["method"], row["budget"]) for row in report["pruned"]]
    assert places == [(name, budget) for name in selectors for budget in (8, 32)]
    for row in report["pruned"]:
        prefix = "" if row["method"] == "autoselect" else "autoselect:diversity-0.5 "
        own = report["timings"][f"{prefix}prefill@{row['budget']}"]
        assert row["prefill_ms"] == own["median_ms"]
        assert row["speedup"] == pytest.approx(report["full_prefill_ms"] / row["prefill_ms"])
        assert min(row["first_token_ms"], row["selector_ms"], row["kv_cache_bytes"]) > 0
        assert ("decode_ms" in row) == (row["method"] == "autoselect")


@torch.inference_mode()
def test_replayed_tower_and_projector_give_the_visual_tokens(pair):
    vlm, selector = pair
    prompt = Prompt.of(vlm, fixed_image(), "a ?", 2)
    (projected,) = vision_calls(vlm, prompt)["projector"].run()
    torch.testing.assert_close(projected.reshape(prompt.tokens.shape), prompt.tokens)


@torch.inference_mode()
def test_a_projector_that_runs_once_for_each_tile_is_timed_with_all_tiles():
    vlm, prompt = tiny_pair("lfm2_vl")
    seen = []
    hook = vlm.adapter.projector.register_forward_hook(lambda *call: seen.append(call[2]))
    vlm.adapter.encode(prompt.inputs)
    hook.remove()
    projected = vision_calls(vlm, prompt)["projector"].run()
    for own, want in zip(projected, seen, strict=True):
        torch.testing.assert_close(own, want)


def tiny_pair(name):
    """Return a tiny model and a batch of two prompts with an image each, as they are timed."""
    model = model_of(name)
    adapter = VisualAdapter(model)
    inputs = tiny.batch(name, [["l"], ["l"]])
    encoded = {**adapter.with_outputs(inputs, adapter.encode(inputs)), "use_cache": True}
    vlm = SimpleNamespace(model=model, adapter=adapter, family=adapter.family, device="cpu")
    return vlm, SimpleNamespace(inputs=inputs, encoded=encoded, attached=encoded)


@torch.inference_mode()
def test_a_decoding_step_continues_the_prompt_and_can_be_repeated(pair):
    vlm, selector = pair
    prompt = Prompt.of(vlm, fixed_image(), "is there a star ?", 2)
    longer = dict(prompt.inputs)
    for name in ("input_ids", "attention_mask"):
        added = torch.zeros(2, 1) if name == "input_ids" else torch.ones(2, 1)
        longer[name] = torch.cat([longer[name], added.to(longer[name])], dim=1)
    calls = decode_calls(vlm, selector, prompt, (8,))
    for name, around in (
        ("full_decode", nullcontext),
        ("decode@8", attached(vlm.model, selector, 8)),
    ):
        with around():
            expected = vlm.model(**longer).logits[:, -1]
        for _ in range(2):
            with calls[name].around():
                found = calls[name].run()[:, -1]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["gemma3", "muse_glimmer", "unlimited_ocr"])
@torch.inference_mode()
def test_a_decoding_step_can_be_repeated_behind_a_full_sliding_window(name, monkeypatch):
    vlm, prompt = tiny_pair(name)
    window = 8
    for own in (vlm.model.config.get_text_config(), *vlm.model.get_decoder().modules()):
        if isinstance(getattr(own, "sliding_window", None), int):
            monkeypatch.setattr(own, "sliding_window", window)
    assert prompt.inputs["input_ids"].shape[1] > window
    for call in decode_calls(vlm, selector(), prompt, (4,)).values():
        with call.around():
            first, second = call.run(), call.run()
        assert torch.equal(first, second)


@torch.inference_mode()
def test_cache_bytes_are_those_of_the_cache(pair):
    vlm, _ = pair
    prompt = Prompt.of(vlm, fixed_image(), "a ?", 2)
    length = prompt.inputs["input_ids"].shape[1]
    each = 2 * length * 2 * 4 * 192 * 4
    assert cache_bytes(filled_cache(vlm, prompt)) == each, "2 rows, 4 layers, 192 channels"


@pytest.mark.parametrize("name", ["lfm2_vl", "gemma4", "qwen3_5", "granite4_vision"])
@torch.inference_mode()
def test_only_layers_that_keep_keys_and_values_grow_the_cache(name):
    """Convolutions keep a state, layers differ in width, and some models make no cache."""
    vlm, prompt = tiny_pair(name)
    full = filled_cache(vlm, prompt)
    pruned = filled_cache(vlm, prompt, attached(vlm.model, selector(), 4))
    parts = [
        (kind, layer, other)
        for layer, other in zip(full.layers, pruned.layers, strict=True)
        for kind in ("keys", "values")
        if isinstance(getattr(layer, kind, None), torch.Tensor)
    ]
    fewer = sum(getattr(one, k).nbytes - getattr(other, k).nbytes for k, one, other in parts)
    assert cache_bytes(full) - cache_bytes(pruned) == fewer > 0


def test_the_peak_of_a_prefill_is_taken_before_other_calls_hold_caches(pair, monkeypatch):
    vlm, selector = pair
    order, real = [], latency.decode_calls

    def peak(memory, call):
        order.append("peak")
        memory.highest = len(order)
        return len(order)

    def with_caches(*arguments):
        order.append("caches")
        return real(*arguments)

    monkeypatch.setattr(latency._Memory, "peak", peak)
    monkeypatch.setattr(latency, "decode_calls", with_caches)
    plan = LatencyPlan((8, 32), rounds=Rounds(1, 0))
    report = latency_report(vlm, {"autoselect": selector}, fixed_image(), "a ?", plan)
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
    plan = LatencyPlan((8,), rounds=Rounds(2, 0, compiled=True))
    report = latency_report(vlm, {"autoselect": selector}, fixed_image(), "a ?", plan)
    assert compiled == [("forward", "default", False), ("select", "default", False)]
    (row,) = report["compiled"]["pruned"]
    whole = row["prefill_ms"] + row["selector_ms"]
    assert row["speedup"] == pytest.approx(report["compiled"]["full_prefill_ms"] / whole)
    lines = bench_lines({"num_tokens": 144, "runs": [report]})
    assert "torch.compile: full prefill" in "\n".join(lines)
