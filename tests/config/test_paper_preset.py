"""The presets named after the paper hold the paper's settings, item by item.

The list is that of the paper (arXiv 2603.07135) and of its follow-up (arXiv 2605.28051).
"""

from pathlib import Path

import pytest
import torch

from autoselect.config import TrainConfig
from autoselect.config.deepspeed import DeepSpeedConfig
from autoselect.config.files import load_config
from autoselect.method.denoiser import Denoiser
from autoselect.method.schedules import learning_rate, temperature, token_budget
from autoselect.method.scorer import Scorer
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.vlm import GRID, build_model

ROOT = Path(__file__).parents[2] / "configs"
PRESETS = ("paper", "paper-llava-1.5-7b")
TOKENS = {"paper": GRID**2, "paper-llava-1.5-7b": 576}
DEEPSPEED = {"paper": "zero2", "paper-llava-1.5-7b": "zero2_one_card"}


@pytest.fixture(params=PRESETS)
def name(request):
    return request.param


@pytest.fixture
def config(name):
    return load_config(TrainConfig, str(ROOT / "train" / f"{name}.yaml"), [])


def test_the_budget_is_fixed_at_a_ninth_of_the_tokens(config, name):
    drawn = {token_budget(config.gate, config.seed, step) for step in range(100)}
    assert drawn == {TOKENS[name] // 9}


def test_scores_are_raw_and_the_noise_is_isotropic_on_normalised_tokens(config):
    assert config.gate.standardise is False
    assert (config.gate.kind, config.gate.noise) == ("noise", "isotropic")


def test_the_gate_sits_before_the_projector_and_nothing_of_ours_is_added(config):
    gate = config.gate
    assert gate.site == "before_projector"
    assert not gate.soft_removal and gate.coverage == 0
    assert config.tune_images == 0


def test_the_temperature_falls_from_two_to_a_tenth_along_a_cosine(config):
    steps = config.steps
    length = 2000 if steps == 4000 else steps // 2
    values = [temperature(config.gate, step, steps) for step in (0, length // 2, length, steps)]
    assert values == pytest.approx([2.0, 1.05, 0.1, 0.1])


def test_the_scorer_has_two_blocks_as_wide_as_the_encoder_with_sixteen_heads(config, name):
    scorer = config.scorer
    assert (scorer.num_layers, scorer.num_heads) == (2, 16)
    encoder = {"paper": build_model().config.vision_config.hidden_size, PRESETS[1]: 1024}
    assert scorer.hidden_size == encoder[name]


def test_the_denoiser_has_one_block(config):
    assert config.denoiser.num_layers == 1


def test_llava_trains_84_million_parameters():
    config = load_config(TrainConfig, str(ROOT / "train" / "paper-llava-1.5-7b.yaml"), [])
    with torch.device("meta"):
        parts = Scorer(1024, config.scorer), Denoiser(1024, config.denoiser)
    assert sum(p.numel() for part in parts for p in part.parameters()) == pytest.approx(84e6, 0.01)


def test_adam_starts_at_2e_4_and_follows_a_cosine_to_zero(config):
    rates = [learning_rate(config.optimizer, step, 100) for step in (0, 50, 100)]
    assert rates == pytest.approx([2e-4, 1e-4, 0.0], abs=1e-12)


def test_an_update_has_32_images_and_one_epoch_ends_the_training(config, name):
    deepspeed = DeepSpeedConfig.load(ROOT / "deepspeed" / f"{DEEPSPEED[name]}.json")
    sizes = deepspeed.split(1)
    assert sizes.micro * sizes.accumulation == 32
    rows = {"paper": ReferenceData().train, "paper-llava-1.5-7b": 1_281_167 // 10}[name]
    own = config.validation.shards == "held-out"
    held_out = config.validation.images if own else 0
    assert 0.99 * rows < config.steps * 32 + held_out <= rows


def test_a_validation_loss_ends_the_training_early(config):
    assert config.validation.every > 0 and config.validation.patience > 0
    assert config.validation.every * config.validation.patience < config.steps / 2
