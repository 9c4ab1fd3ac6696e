"""The flagship benchmark runs every part on a CPU with the same classes at toy sizes."""

import json

import flagship
import flagship_models
import pytest
import torch
from transformers import AutoModelForImageTextToText

PARTS = {"prefill, batch 1", "prefill, batch 8", "first token, batch 1", "micro-batch"}


@pytest.mark.parametrize("name", flagship_models.CONFIGS)
def test_the_rehearsal_runs_every_part(name, tmp_path, monkeypatch):
    monkeypatch.setattr(flagship, "CONFIGS", {name: flagship_models.CONFIGS[name]})
    flagship.run(tmp_path / "flagship.json", "cpu", toy=True, budget_s=600)
    parts = json.loads((tmp_path / "flagship.json").read_text())["models"][name]
    assert PARTS <= set(parts)
    for part, found in parts.items():
        assert "failed" not in found and "not_run" not in found, (part, found)
        if part == "device calls":  # there are none on a CPU
            continue
        timings = [row for row in found.values() if "median_ms" in row]
        assert timings and all(row["median_ms"] > 0 for row in timings)


def test_without_time_left_every_part_says_so(tmp_path, monkeypatch):
    name = "llava-1.5-7b"
    monkeypatch.setattr(flagship, "CONFIGS", {name: flagship_models.CONFIGS[name]})
    result = flagship.run(tmp_path / "flagship.json", "cpu", toy=True, budget_s=0)
    parts = result["models"][name].values()
    assert parts and all(found == {"not_run": "no time was left"} for found in parts)
    assert json.loads((tmp_path / "flagship.json").read_text()) == result


def test_a_model_that_cannot_be_built_is_named_and_the_others_are_measured(tmp_path, monkeypatch):
    class Full(flagship.Bench):
        def __post_init__(self):
            if self.name.startswith("llava"):
                raise MemoryError("17 GiB")
            super().__post_init__()

    monkeypatch.setattr(flagship, "Bench", Full)
    monkeypatch.setattr(flagship, "parts", lambda bench: [("one", lambda: {"calls": {}})])
    flagship.run(tmp_path / "flagship.json", "cpu", toy=True, budget_s=600)
    models = json.loads((tmp_path / "flagship.json").read_text())["models"]
    assert models["llava-1.5-7b"] == {"model": {"failed": "MemoryError: 17 GiB"}}
    assert models["qwen2.5-vl-7b"] == {"one": {"calls": {}}}


@pytest.mark.parametrize(
    ("name", "billions", "tokens"), [("llava-1.5-7b", 7.06, 576), ("qwen2.5-vl-7b", 8.29, 576)]
)
def test_the_models_have_the_size_of_the_released_ones(name, billions, tokens):
    config_of, sizes, _ = flagship_models.CONFIGS[name]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(sizes))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.02)
    assert flagship_models.visual_tokens(name, sizes) == tokens
