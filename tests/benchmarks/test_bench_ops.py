"""The contenders of the operator benchmark are correct, and an interrupted run keeps its rows."""

import json

import bench_ops
import pytest
import torch
from bench_ops import Case, Stopwatch

from autoselect.ops.soft_top_k import soft_top_k_reference

TEMPERATURE = 0.3


@pytest.mark.parametrize("n, k", [(2, 1), (63, 7), (576, 64), (576, 575)])
@pytest.mark.parametrize("kind", ["normal", "outlier", "equal"])
def test_bisected_gates_and_gradients_agree_with_the_reference(n, k, kind):
    torch.manual_seed(n)
    scores = torch.zeros(2, n) if kind == "equal" else torch.randn(2, n)
    if kind == "outlier":
        scores[:, 0] = 50.0
    upstream = torch.randn(2, n)
    leaf, exact = scores.clone().requires_grad_(), scores.double().requires_grad_()
    gates = torch.sigmoid(bench_ops.bisected_logits(leaf, k, TEMPERATURE))
    expected = soft_top_k_reference(exact, k, TEMPERATURE)
    gates.backward(upstream)
    expected.backward(upstream.double())
    assert gates.dtype == torch.float32
    # In float32 a sum of gates near 575 is known to 6e-5.
    torch.testing.assert_close(gates.double(), expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=0, atol=5e-5)


def test_the_plain_gate_of_a_gpu_reads_nothing_on_the_host():
    """Meta tensors have no values, so code that reads a value fails."""
    scores = torch.randn(2, 63, device="meta", requires_grad=True)
    bench_ops.PLAIN_LOGITS["cuda"](scores, 7, TEMPERATURE).sum().backward()
    with pytest.raises(RuntimeError, match="item.. cannot be called on meta tensors"):
        bench_ops.PLAIN_LOGITS["cpu"](scores, 7, TEMPERATURE)


class FakeWatch(Stopwatch):
    """Call once and return one millisecond."""

    def milliseconds(self, call, repeats):
        call()
        return 1.0


def _case(called, name="soft_top_k"):
    contenders = {key: lambda key=key: called.append(key) for key in ("native", "plain", "floor")}
    return Case(name, torch.float32, [2, 9], "forward", contenders)


def test_on_a_gpu_the_floor_is_a_graph_as_the_native_operator_is(monkeypatch):
    called = []
    monkeypatch.setattr(bench_ops, "graph_of", lambda call: lambda: called.append("graph"))
    watch = FakeWatch(torch.device("cuda"), "wall")
    row = bench_ops.measure(_case(called), watch, 1, 0.0)
    assert {"native", "plain", "graph"} == set(called)
    assert {"native_ms", "native_graph_ms", "plain_ms", "floor_ms"} <= set(row)


def test_rows_are_kept_after_every_case(monkeypatch, tmp_path, capsys):
    path = tmp_path / "results" / "ops.json"
    kept = []

    def cases(_device, _compiled):
        for name in ("first", "second"):
            yield lambda name=name: _case([], name)
            kept.append([row["op"] for row in json.loads(path.read_text())])

    monkeypatch.setattr(bench_ops, "cases", cases)
    bench_ops.run(FakeWatch(torch.device("cpu"), "wall"), 1, 0.0, False, path)
    assert kept == [["first"], ["first", "second"]]
    assert capsys.readouterr().out.endswith(f"{bench_ops.SMALL_FLOORS}\n")


@pytest.mark.parametrize("direction", list(bench_ops.COPIES))
def test_the_default_noise_is_timed_beside_its_reference_on_equal_terms(direction):
    case = bench_ops.factor_case(
        torch.device("cpu"), (2, 18, 12), torch.bfloat16, direction, large=False
    )
    results = {name: case.contenders[name]() for name in ("native", "channel", "reference")}
    count = {"forward": None, "forward+backward": 2, bench_ops.FROZEN: 1}[direction]
    for result in results.values():
        assert len(result) == count if count else result.shape == (2, 18, 12)


def test_diverse_and_hard_top_k_are_timed_with_their_gather():
    case = bench_ops.diverse_case(torch.device("cpu"), (2, 40, 12), 7, torch.bfloat16)
    assert torch.equal(case.contenders["native"](), case.contenders["reference"]())
    kept, _ = case.contenders["hard"]()
    assert kept.shape == case.contenders["native"]().shape == (2, 7, 12)


def test_every_size_that_a_gpu_trains_with_is_a_case(monkeypatch):
    """The cases themselves are not made: the largest needs gigabytes."""
    made = []
    for name in ("gate_case", "factor_case", "soft_top_k_case", "select_case", "diverse_case"):
        monkeypatch.setattr(bench_ops, name, lambda *args, name=name: made.append((name, *args)))
    for make in bench_ops.cases(torch.device("cpu"), compiled=False):
        make()
    large = [args[4] for args in made if args[2:4] == ((32, 576, 4096), torch.bfloat16)]
    assert large == list(bench_ops.COPIES)
    small = {args[4] for args in made if args[0] == "factor_case" and args[5] is False}
    assert small == set(bench_ops.COPIES)
