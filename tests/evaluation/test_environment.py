"""What a report says of the machine; the GPU is a stand-in."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from autoselect.evaluation.latency import environment as module
from autoselect.evaluation.latency import protocol as latency
from autoselect.evaluation.latency.timing import Call
from tests.evaluation.fakes import FakeSelector, FakeVLM, make_samples


def test_a_cpu_has_no_clocks():
    facts = module.environment("cpu")
    assert "gpu" not in facts and "gpu_clocks" not in facts
    assert facts["processor"] and facts["torch"] == torch.__version__


def test_clocks_are_those_of_the_device_in_use(monkeypatch):
    """By UUID: CUDA_VISIBLE_DEVICES and nvidia-smi number the GPUs differently."""
    asked = []
    uuids = {0: "aaaa", 1: "bbbb"}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda where: SimpleNamespace(uuid=uuids[where.index])
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: f"GPU {where.index}")
    monkeypatch.setattr(module, "_command", lambda words: asked.append(words) or "1980 MHz")
    facts = module.environment("cuda:1")
    assert facts["gpu"] == "GPU 1" and facts["gpu_clocks"] == "1980 MHz"
    (query,) = [words for words in asked if words[0] == "nvidia-smi"]
    assert "--id=GPU-bbbb" in query


def test_the_machine_is_asked_right_after_the_timed_rounds(monkeypatch):
    order = []

    class Stop(Exception):
        pass

    def asked(device):
        order.append(f"environment of {device}")
        raise Stop

    monkeypatch.setattr(latency, "measure", lambda *arguments: order.append("rounds"))
    monkeypatch.setattr(latency, "environment", asked)
    for name in ("vision_calls", "decode_calls", "pruned_calls", "held_bytes"):
        monkeypatch.setattr(latency, name, lambda *arguments: {})
    monkeypatch.setattr(latency.Prompt, "of", lambda *arguments: None)
    monkeypatch.setattr(latency, "full_calls", lambda *arguments: defaultdict(lambda: Call(int)))
    plan = latency.LatencyPlan((2,))
    with pytest.raises(Stop):
        image = make_samples(1)[0].image
        latency.latency_report(FakeVLM(), {"autoselect": FakeSelector()}, image, "what ?", plan)
    assert order == ["rounds", "environment of cpu"]
