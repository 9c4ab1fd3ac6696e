"""The operators under opcheck, torch.compile, checkpointing, torch.func; how they load."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from autoselect.ops import build_info, runs_on
from autoselect.ops._native import OPERATORS, is_native
from autoselect.ops.diverse_top_k import diverse_top_k
from autoselect.ops.hard_top_k import hard_top_k, select_tokens
from autoselect.ops.marginal_order import marginal_order
from autoselect.ops.noise import NoiseKey, NoiseStatistics
from autoselect.ops.noise_gate import noise_gate, soft_top_k_noise_gate
from autoselect.ops.soft_top_k import soft_top_k
from tests.forking import Program, run_after

B, N, D, K = 2, 9, 6, 3
TAU = torch.tensor(0.5, dtype=torch.float64)


def _noise(device, rank):
    factor = torch.randn(rank, D, device=device) if rank else None
    seed, step = torch.tensor(3, device=device), torch.tensor(4, device=device)
    channels = (torch.randn(D, device=device), torch.rand(D, device=device))
    return *channels, factor, seed, step, torch.arange(B, device=device)


def _statistics(device):
    return NoiseStatistics(torch.zeros(D, device=device), torch.ones(D, device=device))


def _samples(device):
    """Yield (operator, arguments) pairs that reach every kernel with every optional argument."""
    x = torch.randn(B, N, D, device=device)
    r = torch.randn(B, N, device=device)
    half = torch.randn(B, N, D, device=device, dtype=torch.bfloat16)
    rows = torch.tensor([2, 9], device=device)
    mask = torch.rand(B, N, device=device) > 0.2
    gates = torch.rand(B, N, device=device)
    for budget, valid in (((None, K), None), ((rows, 0), mask)):
        yield "soft_top_k", (r.clone().requires_grad_(), *budget, TAU, valid)
    yield "soft_top_k_backward", (torch.randn(B, N, device=device), r, TAU)
    for tokens, noise in ((x, _noise(device, 0)), (half, _noise(device, 2))):
        leaf, scores = tokens.clone().requires_grad_(), r.clone().requires_grad_()
        yield "noise_gate", (leaf, gates.clone().requires_grad_(), *noise)
        yield "noise_gate_backward", (torch.randn_like(tokens), tokens, gates, *noise)
        yield "noise_gate_backward", (torch.randn_like(tokens), tokens, gates, *noise, False)
        frozen = (tokens, gates.clone().requires_grad_(), *noise)
        yield "noise_gate", frozen
        yield "soft_top_k_noise_gate", (leaf, scores, None, K, TAU, *noise, None)
        yield "soft_top_k_noise_gate", (leaf, scores, rows, 0, TAU, *noise, mask)
        grads = (torch.randn_like(tokens), torch.randn(B, N, device=device))
        yield "soft_top_k_noise_gate_backward", (*grads, tokens, r, TAU, *noise)
        yield "soft_top_k_noise_gate_backward", (grads[0], None, tokens, r, TAU, *noise)
        yield "soft_top_k_noise_gate_backward", (*grads, tokens, r, TAU, *noise, False)
    few = torch.tensor([1, K], device=device)
    for budgets in ((), (few,)):
        yield "hard_top_k", (r, K, mask, *budgets)
        yield "select_tokens", (x.clone().requires_grad_(), r, K, None, *budgets)
        yield "diverse_top_k", (r, half, K, 0.4, mask, *budgets)
    for valid in (None, mask):
        yield "marginal_order", (r, torch.rand(B, N, N, device=device), K, 0.5, valid)
    yield "select_tokens_backward", (x[:, :K].clone(), torch.tensor([[0, 4, -1]] * B).to(device), N)


@pytest.mark.parametrize("operator", OPERATORS)
def test_opcheck(operator, native, device):
    torch.manual_seed(0)
    checked = 0
    for name, arguments in _samples(device):
        if name == operator:
            torch.library.opcheck(getattr(torch.ops.autoselect, name).default, arguments)
            checked += 1
    assert checked


def _gate_and_select(x, r, seed, step, ids):
    """Compute a number through every public operator."""
    key = NoiseKey(seed, step, ids)
    gated, gates = soft_top_k_noise_gate(x, r, K, TAU, _statistics(x.device), key)
    kept, _ = select_tokens(gated, r, K)
    return kept.square().sum() + (gates * soft_top_k(r, K, TAU)).sum()


def _arguments(device):
    torch.manual_seed(0)
    x = torch.randn(B, N, D, device=device, requires_grad=True)
    r = torch.randn(B, N, device=device, requires_grad=True)
    return (
        x,
        r,
        torch.tensor(1, device=device),
        torch.tensor(2, device=device),
        torch.arange(B, device=device),
    )


def _value_and_gradients(function, arguments):
    value = function(*arguments)
    return value.detach(), *torch.autograd.grad(value, arguments[:2])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_as_one_graph(backend, native, device):
    arguments = _arguments(device)
    compiled = torch.compile(_gate_and_select, fullgraph=True, backend=backend)
    expected = _value_and_gradients(_gate_and_select, arguments)
    for actual, value in zip(_value_and_gradients(compiled, arguments), expected, strict=True):
        torch.testing.assert_close(actual, value)


def _counted(function):
    """Return the function compiled as one graph, and the list of graphs that its calls make."""
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend=count), graphs


def _select_by_row(x, r, budgets):
    """Compute a number through the selections with one budget per row."""
    kept, positions = select_tokens(x, r, budgets, width=K)
    diverse = diverse_top_k(r, x, budgets, 0.4, width=K)
    return kept.square().sum() + (positions + hard_top_k(r, budgets, width=K) + diverse).sum()


def test_selections_with_a_budget_per_row_compile_as_one_graph(native, device):
    x, r, *_ = _arguments(device)
    compiled, graphs = _counted(_select_by_row)
    for budgets in ([1, K], [K, 2]):
        arguments = (x, r, torch.tensor(budgets, device=device))
        (expected,) = torch.autograd.grad(_select_by_row(*arguments), x)
        (actual,) = torch.autograd.grad(compiled(*arguments), x)
        assert torch.equal(actual, expected)
    assert len(graphs) == 1


def test_one_compiled_graph_serves_every_step_and_temperature(native, device):
    x, r, seed, step, ids = _arguments(device)

    def gate(x, r, temperature, step):
        key = NoiseKey(seed, step, ids)
        return soft_top_k_noise_gate(x, r, K, temperature, _statistics(device), key)[0]

    compiled, graphs = _counted(gate)
    for number, temperature in enumerate((0.9, 0.7, 0.5, 0.3)):
        expected = gate(x, r, temperature, step + number)
        torch.testing.assert_close(compiled(x, r, temperature, step + number), expected)
    assert len(graphs) <= 2


SELECTIONS = {
    "soft_top_k": lambda x, r, k, weight: soft_top_k(r, k, 0.5),
    "hard_top_k": lambda x, r, k, weight: hard_top_k(r, k),
    "select_tokens": lambda x, r, k, weight: select_tokens(x, r, k)[0],
    "diverse_top_k": lambda x, r, k, weight: diverse_top_k(r, x, k, weight),
    "marginal_order": lambda x, r, k, weight: marginal_order(r, x @ x.mT, k, weight),
}


@pytest.mark.parametrize("operator", SELECTIONS)
def test_one_compiled_graph_serves_every_budget(operator, native, device):
    x, r, *_ = _arguments(device)
    compiled, graphs = _counted(SELECTIONS[operator])
    for k in range(2, N):
        expected = SELECTIONS[operator](x, r, k, 0.4)
        assert torch.equal(compiled(x, r, k, 0.4), expected)
    assert len(graphs) <= 2
    for weight in (0.1, 0.2, 0.3):
        expected = SELECTIONS[operator](x, r, K, weight)
        assert torch.equal(compiled(x, r, K, weight), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_noise_again(reentrant, device):
    arguments = _arguments(device)
    expected = _value_and_gradients(_gate_and_select, arguments)
    value = checkpoint(_gate_and_select, *arguments, use_reentrant=reentrant)
    value.backward()
    assert torch.equal(value.detach(), expected[0])
    assert torch.equal(arguments[0].grad, expected[1])
    assert torch.equal(arguments[1].grad, expected[2])


def test_functional_gradient(native, device):
    x, r, *key = _arguments(device)
    expected = _value_and_gradients(_gate_and_select, (x, r, *key))
    grads = torch.func.grad(lambda x, r: _gate_and_select(x, r, *key), argnums=(0, 1))(
        x.detach(), r.detach()
    )
    for actual, value in zip(grads, expected[1:], strict=True):
        torch.testing.assert_close(actual, value)


def _calls(x, r, *key):
    """Return every differentiable operator as a function, and where to differentiate it."""
    noise = _statistics(x.device), NoiseKey(*key)
    return {
        "soft_top_k": (lambda r: soft_top_k(r, K, TAU), r),
        "noise_gate": (lambda r: noise_gate(x, r.sigmoid(), *noise), r),
        "soft_top_k_noise_gate": (lambda r: soft_top_k_noise_gate(x, r, K, TAU, *noise)[0], r),
        "select_tokens": (lambda x: select_tokens(x, r, K)[0], x),
    }


def _by_dual_numbers(function, value, tangent):
    with forward_ad.dual_level():
        result = function(forward_ad.make_dual(value, tangent))
        return forward_ad.unpack_dual(result).tangent


def _by_transform(function, value, tangent):
    return torch.func.jvp(function, (value,), (tangent,))[1]


@pytest.mark.parametrize("derive", [_by_dual_numbers, _by_transform])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "operator", ["soft_top_k", "noise_gate", "soft_top_k_noise_gate", "select_tokens"]
)
def test_forward_mode_gives_the_derivative(operator, compiled, derive, native, device):
    """It is the transpose of the gradient, also after a call outside of it was compiled."""
    x, r, *key = _arguments(device)
    function, leaf = _calls(x.detach(), r.detach(), *key)[operator]
    value = function(leaf.requires_grad_())
    upstream, tangent = torch.randn_like(value), torch.randn_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, upstream)
    if compiled:
        torch._dynamo.reset()
        function = torch.compile(function, backend="eager")
        function(leaf.detach())
    found = derive(function, leaf.detach(), tangent)
    torch.testing.assert_close((found * upstream).sum(), (gradient * tangent).sum())


@pytest.mark.parametrize(
    "operator", ["soft_top_k", "noise_gate", "soft_top_k_noise_gate", "select_tokens"]
)
def test_a_second_derivative_is_refused(operator, native, device):
    """It would be zero, whatever the operator computes."""
    x, r, *key = _arguments(device)
    noise = _statistics(device), NoiseKey(*key)
    result = {
        "soft_top_k": lambda: soft_top_k(r, K, TAU),
        "noise_gate": lambda: noise_gate(x, r.detach().sigmoid(), *noise),
        "soft_top_k_noise_gate": lambda: soft_top_k_noise_gate(x, r, K, TAU, *noise)[0],
        "select_tokens": lambda: select_tokens(x, r, K)[0],
    }[operator]()
    leaf = r if operator == "soft_top_k" else x
    (grad,) = torch.autograd.grad(result.square().sum(), leaf, create_graph=True)
    words = f"autoselect::{operator} is differentiable once.*; or use {operator}_reference"
    with pytest.raises(NotImplementedError, match=words):
        torch.autograd.grad(grad.sum(), leaf)


@pytest.mark.parametrize(
    "operator", ["soft_top_k", "noise_gate", "soft_top_k_noise_gate", "select_tokens"]
)
def test_a_second_derivative_inside_a_transform_is_the_slope_of_the_gradient(operator, device):
    x, r, seed, step, ids = _arguments(device)
    function, leaf = _calls(x.detach().double(), r.detach().double(), seed, step, ids)[operator]
    upstream = torch.randn_like(function(leaf))

    def loss(value):
        return (function(value).pow(3) * upstream).sum()

    direction, size = torch.randn_like(leaf), 1e-4
    around = [torch.func.grad(loss)(leaf + sign * size * direction) for sign in (-1, 1)]
    expected = (around[1] - around[0]) / (2 * size)
    product = torch.func.jvp(torch.func.grad(loss), (leaf,), (direction,))[1]
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)
    again = torch.func.grad(lambda value: (torch.func.grad(loss)(value) * direction).sum())(leaf)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)


def test_fake_tensors_have_shapes_and_no_values(native):
    with FakeTensorMode():
        x, r, *key = _arguments(torch.device("cpu"))
        gated, gates = soft_top_k_noise_gate(
            x, r, torch.full((B,), K), 0.5, _statistics("cpu"), NoiseKey(*key)
        )
        kept, positions = select_tokens(
            noise_gate(x, gates, _statistics("cpu"), NoiseKey(*key)), r, K
        )
        assert gated.shape == (B, N, D) and gates.shape == soft_top_k(r, K, 0.5).shape == (B, N)
        assert kept.shape == (B, K, D) and positions.shape == hard_top_k(r, K).shape == (B, K)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_choice_of_a_path_is_traced(kind):
    """The choice must stay inside the graph, also without a device of this kind."""

    def chosen(x):
        return x + is_native(torch.device(kind))

    x = torch.zeros(2)
    compiled = torch.compile(chosen, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), x + is_native(torch.device(kind)))


def test_build_information_is_complete():
    info = build_info()
    assert set(info["paths"]) == set(OPERATORS)
    assert all(set(path) == {"cpu", "cuda"} for path in info["paths"].values())
    if info["native"]:
        for field in ("version", "torch", "compiler", "cuda_architectures", "cpu_instruction_set"):
            assert field in info
        assert info["paths"]["soft_top_k"]["cpu"] == "native"


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        ("8.0;9.0;10.0", [(8, 0), (8, 9), (9, 0), (10, 3)], [(7, 5), (7, 0), (12, 0)]),
        ("7.5;8.0;12.0+PTX", [(7, 5), (8, 6), (12, 0), (12, 1), (13, 0)], [(7, 0), (9, 0)]),
        ("8.0+PTX 9.0", [(8, 0), (9, 0), (12, 0)], [(7, 5)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("9.0a+PTX", [(9, 0)], [(9, 1), (10, 0)]),
        ("native", [(9, 0)], []),
    ],
)
def test_where_machine_code_and_ptx_run(architectures, runs, does_not):
    assert all(runs_on(architectures, capability) for capability in runs)
    assert not any(runs_on(architectures, capability) for capability in does_not)


HIDE_EXTENSION = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "autoselect._C" else find(name)
import torch
from autoselect.ops import build_info
from autoselect.ops.soft_top_k import soft_top_k
gates = soft_top_k(torch.randn(2, 9), 3, 0.5)
assert abs(float(gates.sum()) - 6) < 1e-4 and not build_info()["native"]
"""


ON_A_GPU = """
import torch
torch.cuda.is_available = lambda: True
from autoselect.ops import _native, build_info
_native.HAS_CUDA = False
build_info()
for _ in range(3):
    assert not _native.is_native(torch.device("cuda"))
    assert _native.is_native(torch.device("cpu"))
"""


WHICH_BUILD = "from autoselect.ops import build_info; print(build_info())"
PROGRAMS = {
    **{("hidden", on): Program(HIDE_EXTENSION, {"AUTOSELECT_REQUIRE_NATIVE": on}) for on in "01"},
    **{("on a GPU", on): Program(ON_A_GPU, {"AUTOSELECT_REQUIRE_NATIVE": on}) for on in "01"},
    **{
        ("wanted", name): Program(WHICH_BUILD, {"AUTOSELECT_CPU_ISA": name})
        for name in ("", "baseline", "neon")
    },
}


@pytest.fixture(scope="module")
def ended():
    """Return how each program ended, which loads the operators in an environment of its own."""
    runs = run_after("import torch", list(PROGRAMS.values()), Path.cwd(), dict(os.environ))
    return dict(zip(PROGRAMS, runs, strict=True))


@pytest.mark.parametrize("required", ["0", "1"])
def test_a_missing_extension_is_one_warning_or_an_error_when_required(required, ended):
    run = ended["hidden", required]
    assert run.stderr.count("the native operators are not built") == 1
    if required == "1":
        assert run.returncode != 0 and "ImportError: AUTOSELECT_REQUIRE_NATIVE=1" in run.stderr
    else:
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("required", ["0", "1"])
def test_a_build_without_cuda_is_one_warning_on_a_gpu_or_an_error_when_required(
    required, native, ended
):
    run = ended["on a GPU", required]
    assert run.stderr.count("built for the CPU alone") == 1
    assert "FORCE_CUDA=1" in run.stderr and "pip install --no-build-isolation" in run.stderr
    if required == "1":
        assert run.returncode != 0 and "ImportError: AUTOSELECT_REQUIRE_NATIVE=1" in run.stderr
    else:
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("wanted", ["", "baseline", "neon"])
def test_an_instruction_set_that_the_processor_lacks_is_named(wanted, native, ended):
    run = ended["wanted", wanted]
    if wanted == "neon":
        words = r"AUTOSELECT_CPU_ISA=neon must be baseline.* or unset on this processor"
        assert re.search(words, run.stderr) and run.returncode != 0
    else:
        expected = wanted or native.build_info()["cpu_instruction_set"]
        assert f"'cpu_instruction_set': '{expected}'" in run.stdout, run.stderr
