"""On a GPU an attached model gives what it gives on a CPU, and waits once per call."""

import copy
from contextlib import nullcontext

import pytest
import torch

from autoselect import attach, detach
from autoselect.config import DenoiserConfig, GateConfig, ScorerConfig, TrainConfig
from autoselect.method.gating import GateSetting
from autoselect.method.model import AutoSelect
from autoselect.method.statistics import calibrate
from autoselect.ops._native import HAS_CUDA
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import Collator
from tests.vlm.scene_samples import ROUNDS, sample
from tests.vlm.stock import close, features_of, model_of, selector
from tests.vlm.tiny import batch
from tests.waits import ROOT, waits_on_gpu

FAMILIES = ("llava", "llava_next", "internvl", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3")
ONE_TOKEN = {"max_new_tokens": 1, "do_sample": False}
ROWS = [["s", "l"], ["l"]]
GPU = torch.device("cuda")

needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and HAS_CUDA),
    reason="no GPU on this machine, or autoselect._C is built without CUDA",
)


@pytest.fixture(autouse=True)
def exact_products():
    """Multiply and convolve in float32, not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def on_gpu(inputs):
    return {name: value.to(GPU) for name, value in inputs.items()}


def attached_on_gpu(name, chosen, budget):
    return attach(copy.deepcopy(model_of(name)).to(GPU), copy.deepcopy(chosen), budget)


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("diversity", [0.0, 0.4])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_gives_the_same_logits_on_both_devices(name, diversity):
    inputs, chosen = batch(name, ROWS), selector().like(diversity)
    here = attach(model_of(name), chosen, 4)
    try:
        ours = here(**inputs).logits
    finally:
        detach(here)
    there = attached_on_gpu(name, chosen, 4)(**on_gpu(inputs)).logits.cpu()
    assert there.shape == ours.shape
    close(there, ours, 1e-4)


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_waits_for_the_gpu_once(name):
    inputs = on_gpu(batch(name, ROWS))
    model = attached_on_gpu(name, selector(), 4)
    model.generate(**inputs, **ONE_TOKEN)
    with waits_on_gpu() as waits:
        model.generate(**inputs, **ONE_TOKEN)
    assert len(waits) <= 1, "\n".join(waits)


@needs_gpu
def test_the_counter_sees_waits_of_this_package_alone():
    x = torch.ones(3, device=GPU)
    with waits_on_gpu() as waits:
        x.sum().item()
    assert not waits
    with waits_on_gpu() as waits:
        eval(compile("x.sum().item()", f"{ROOT}/here.py", "eval"), {"x": x})
    assert len(waits) == 1


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("diversity", [0.0, 0.4])
def test_scores_and_choice_run_in_a_cuda_graph(diversity):
    chosen = copy.deepcopy(selector()).like(diversity).to(GPU)
    tokens = torch.randn(2, 64, chosen.width, device=GPU)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        chosen.select(tokens, 8)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept, positions = chosen.select(tokens, 8)
    for _ in range(2):
        tokens.normal_()
        graph.replay()
        again, where = chosen.select(tokens, 8)
        assert torch.equal(positions, where)
        torch.testing.assert_close(kept, again, rtol=0, atol=0)


def loss_and_gradients(device, rounds):
    """Return the loss of one micro-batch, its gradients, and how often it waited for a GPU."""
    for needed in ("skimage", "sklearn", "matplotlib"):  # by the pictures
        pytest.importorskip(needed)
    settings = TrainConfig(
        scorer=ScorerConfig(hidden_size=16, num_heads=2),
        denoiser=DenoiserConfig(num_layers=1, hidden_size=16),
        gate=GateConfig(token_budget=16, noise_rank=8, coverage=0.5),
    )
    setting = GateSetting(token_budget=16, temperature=0.1, seed=5, step=3)
    torch.manual_seed(0)
    vlm = FrozenVLM(build_model(1), build_processor(), "tiny")
    collated = Collator(vlm, rounds)([sample(n, ROUNDS) for n in range(3)])
    statistics = calibrate([features_of(vlm, collated)], 8).to(device)
    model = AutoSelect(vlm, settings, statistics)
    vlm.model.to(device)
    model.to(device).train()
    there = collated.to(device)
    model(there, setting)
    with waits_on_gpu() if device == GPU else nullcontext([]) as waits:
        loss = model(there, setting).loss_sum
        loss.backward()
    gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), gradients, waits


def assert_same(ours, theirs, tolerance):
    (loss, gradients, _), (other_loss, others, _) = ours, theirs
    assert other_loss == pytest.approx(loss, rel=tolerance / 10)
    assert len(gradients) == len(others) > 0
    for gradient, other in zip(gradients, others, strict=True):
        close(other, gradient, tolerance)


def test_a_micro_batch_gives_the_same_twice():
    """The next test on a machine without a GPU, so that it cannot fall behind the package."""
    cpu = torch.device("cpu")
    assert_same(loss_and_gradients(cpu, "conversation"), loss_and_gradients(cpu, "conversation"), 0)


@needs_gpu
@pytest.mark.parametrize("rounds", ["independent", "conversation"])
def test_a_micro_batch_gives_the_same_loss_and_gradients_on_both_devices(rounds):
    there = loss_and_gradients(GPU, rounds)
    assert_same(loss_and_gradients(torch.device("cpu"), rounds), there, 1e-3)
    assert len(there[2]) <= 2, "\n".join(there[2])
