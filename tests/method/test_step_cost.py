"""What a training step costs beside its work: waits of this package for the device."""

from dataclasses import replace

import pytest
import torch

from autoselect.config import DenoiserConfig, GateConfig, ScorerConfig, TrainConfig
from autoselect.method.gating import GateSetting
from autoselect.method.model import AutoSelect
from autoselect.method.statistics import calibrate
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import Collator
from tests.vlm.scene_samples import ROUNDS, sample
from tests.vlm.stock import features_of
from tests.waits import cost

CONFIG = TrainConfig(
    scorer=ScorerConfig(hidden_size=16, num_heads=2),
    denoiser=DenoiserConfig(num_layers=1, hidden_size=16),
    gate=GateConfig(token_budget=16, noise_rank=8),
)
SETTING = GateSetting(token_budget=16, temperature=0.1, seed=5, step=3)
MOST_WAITS = 2


@pytest.fixture(scope="module")
def vlm():
    return FrozenVLM(build_model(1), build_processor(), "tiny")


@pytest.mark.parametrize("rounds", ["independent", "conversation"])
@pytest.mark.parametrize("removal", ["none", "soft"])
def test_a_micro_batch_waits_for_the_device_twice_at_most(vlm, rounds, removal):
    collated = Collator(vlm, rounds)([sample(n, ROUNDS) for n in range(3)])
    gate = replace(CONFIG.gate, soft_removal=removal == "soft")
    statistics = calibrate([features_of(vlm, collated)], 8)
    model = AutoSelect(vlm, replace(CONFIG, gate=gate), statistics).train()

    def step():
        model(collated.to(torch.device("cpu")), SETTING).loss_sum.backward()

    waits, _ = cost(step)
    assert waits.total() <= MOST_WAITS, waits


def test_padding_on_the_right_changes_no_loss(vlm):
    """A longer row beside a row pads it; what causal order hides needs no mask."""
    statistics = calibrate([features_of(vlm, Collator(vlm)([sample(0, ROUNDS)]))], 8)
    model = AutoSelect(vlm, CONFIG, statistics).eval()
    collator = Collator(vlm, "conversation")
    samples = [sample(0, ROUNDS[:1]), sample(1, ROUNDS)]
    together = collator(samples)
    assert (together.segments < -1).any()
    with torch.no_grad():
        alone = [float(model(collator([one]), SETTING).loss_sum) for one in samples]
        assert float(model(together, SETTING).loss_sum) == pytest.approx(sum(alone), rel=1e-4)
