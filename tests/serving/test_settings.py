"""What users write about serving is read and checked before anything is loaded."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autoselect import ConfigError
from autoselect.serving.settings import ServingSettings, split_request


def read(block):
    return ServingSettings.of(SimpleNamespace(autoselect=block))


def test_a_model_without_the_block_is_served_whole():
    assert ServingSettings.of(SimpleNamespace()) is None


@pytest.mark.parametrize(
    ("budget", "meaning"), [(64, 64), (0.25, 0.25), ("64", 64), ("25%", 0.25), ("0.25", 0.25)]
)
def test_a_budget_is_a_count_a_share_or_a_percentage(budget, meaning):
    assert read({"selector": "org/name", "budget": budget}).budget == meaning
    assert split_request({"visual_token_budget": budget}) == ({}, meaning)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("folder", "must be a JSON object"),
        ({"budget": 64}, "has no selector"),
        ({"selector": "org/name"}, "has no budget"),
        ({"selector": "org/name", "budget": 64, "k": 3}, "unknown keys k"),
        ({"selector": 5, "budget": 64}, "selector=5"),
        ({"selector": "org/name", "budget": 0}, "budget=0 is below 1"),
        ({"selector": "org/name", "budget": 1.5}, "budget=1.5 as a share"),
        ({"selector": "org/name", "budget": True}, "budget=True must be"),
        (
            {"selector": "org/name", "budget": "many"},
            "autoselect.budget: budget='many' is not a number",
        ),
        ({"selector": "org/name", "budget": "nan"}, "budget=nan as a share"),
        ({"selector": "org/name", "budget": "inf"}, "budget=inf as a share"),
        ({"selector": "org/name", "budget": 64, "diversity": 2}, "diversity"),
    ],
)
def test_a_wrong_block_is_refused_by_name(block, words):
    with pytest.raises(ConfigError, match=words):
        read(block)


def test_numbers_of_numpy_and_torch_count_as_those_of_python():
    for number in (np.int64(16), np.float32(0.25), torch.tensor(16), np.float64(0.25)):
        _, found = split_request({"visual_token_budget": number})
        assert found == number and type(found) in (int, float)


@pytest.mark.parametrize("budget", [0, -1, 1.5, None, [8, 16], "many", np.bool_(True)])
def test_a_wrong_budget_of_a_request_is_refused_by_name(budget):
    with pytest.raises(ConfigError, match="^visual_token_budget"):
        split_request({"visual_token_budget": budget})


def test_other_arguments_of_a_request_reach_the_processor():
    assert split_request({"size": 3}) == ({"size": 3}, None)


def test_the_digest_tells_weights_budgets_and_diversities_apart(tmp_path):
    for name, content in (("config.json", "{}"), ("selector.safetensors", "weights")):
        (tmp_path / name).write_text(content)
    folder = str(tmp_path)
    digests = {
        ServingSettings(folder, 64).digest(),
        ServingSettings(folder, 32).digest(),
        ServingSettings(folder, 64, diversity=0.3).digest(),
    }
    assert ServingSettings(folder, 64).digest() in digests
    (tmp_path / "selector.safetensors").write_text("others")
    digests.add(ServingSettings(folder, 64).digest())
    assert len(digests) == 4
