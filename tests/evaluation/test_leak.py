"""The leak measure: uniform gates let something through, hard ones nothing that is not counted."""

import dataclasses

import pytest
import torch

from autoselect.cli.main import main
from autoselect.config import ConfigError, DenoiserConfig, GateConfig, TrainConfig
from autoselect.config.files import to_dict
from autoselect.evaluation.analyses.leak import (
    REPAIRED,
    TrainedGate,
    leak,
    load_gate,
    repairs_of,
    uniformly_gated,
)
from autoselect.method.denoiser import Denoiser
from autoselect.method.statistics import calibrate
from autoselect.training.checkpoint import CheckpointStore
from autoselect.training.engine_state import TrainedState
from autoselect.training.state import Origin, TrainingState
from autoselect.vlm.sites import SITES
from tests.evaluation.fakes import FakeAsked, FakeVLM, make_samples


class OneSizeVLM(FakeVLM):
    """Takes images of any size, adds `extra` channels to its tokens and `later` layers."""

    def __init__(self, extra: int = 0, later: int = 0) -> None:
        super().__init__()
        self.extra, self.layers = extra, later
        self.width = FakeVLM.width + extra

    def encode_images(self, images, site="after_projector", names=None):
        visual = super().encode_images([image.resize((24, 24)) for image in images])
        tokens = torch.nn.functional.pad(visual.tokens, (0, self.extra))
        gated = torch.cat([tokens] * (1 + self.layers), dim=-1)
        return dataclasses.replace(visual, tokens=tokens, gated=gated, width=self.width)


SMALL = DenoiserConfig(num_layers=1, hidden_size=8)


@pytest.fixture(scope="module")
def tokens():
    return FakeVLM().encode_images([sample.image for sample in make_samples(8)]).tokens


@pytest.fixture(scope="module")
def statistics(tokens):
    return calibrate([tokens.flatten(0, 1)], None)


def test_gates_are_uniform_and_a_new_denoiser_changes_nothing(tokens, statistics):
    gate = TrainedGate("multiplicative", 0.02, statistics, Denoiser(5, SMALL))
    with torch.no_grad():
        found = uniformly_gated(gate, tokens, 9)
    torch.testing.assert_close(found, tokens * 9 / 36, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(repairs_of(gate)[REPAIRED](found), found)


def test_a_hard_gate_has_no_uniform_form(tokens, statistics):
    hard = TrainedGate("straight_through", 0.02, statistics, None)
    assert uniformly_gated(hard, tokens, 9) is None


def test_open_gates_are_the_full_model_and_nearly_closed_ones_are_not(statistics):
    gate = TrainedGate("noise", 0.02, statistics, None)
    samples = make_samples(24)
    whole = leak(FakeAsked(), gate, samples, 36, 4, images_per_batch=10)
    assert whole["without_denoiser"] == whole["full"] == 1.0 and whole["with_denoiser"] is None
    assert whole["excess"]["without_denoiser"] == pytest.approx(1.0 - whole["blind"])
    some = leak(FakeAsked(), gate, samples, 1, 4, images_per_batch=10)
    assert some["without_denoiser"] < whole["without_denoiser"]
    assert some["gate"] == pytest.approx(1 / 36)


def test_a_run_gives_back_its_gate_and_its_denoiser(tmp_path, tokens, statistics):
    config = TrainConfig(denoiser=SMALL, gate=GateConfig(temperature_end=0.03))
    denoiser = Denoiser(5, SMALL)
    torch.nn.init.normal_(denoiser.blocks[0].mlp_out.weight)
    weights = {f"denoiser.{name}": t.detach() for name, t in denoiser.state_dict().items()}
    weights["scorer.score.weight"] = torch.zeros(1, 4)
    state = TrainingState(
        3, TrainedState(weights, weights, weights, 3), to_dict(config), statistics.tensors()
    )
    CheckpointStore(tmp_path / "checkpoints").save(state)
    gate = load_gate(tmp_path, OneSizeVLM(), {})
    assert gate.kind == "noise" and gate.temperature == 0.03
    assert gate.denoiser is not None
    with torch.no_grad():
        gated = uniformly_gated(gate, tokens, 4)
        found = repairs_of(gate)[REPAIRED](gated)
        assert torch.equal(found, denoiser(gated))
    assert not torch.equal(found, gated)
    with pytest.raises(ConfigError, match="of 5 channels, those of this model have 7"):
        load_gate(tmp_path, OneSizeVLM(extra=2), {})
    with pytest.raises(ConfigError, match="of 5 channels, those of this model have 15"):
        load_gate(tmp_path, OneSizeVLM(later=2), {})
    with pytest.raises(ConfigError, match="no checkpoints"):
        load_gate(tmp_path / "elsewhere", OneSizeVLM(), {})


@pytest.mark.parametrize("fact", ["seed", "data_digest", "model_digest"])
def test_the_gate_of_another_training_is_refused(tmp_path, statistics, fact):
    """As `--selector sweep/seed-0/selector --run sweep/seed-1`: its Denoiser knows other tokens."""
    made = {"seed": 3, "data_digest": "d", "model_digest": "m"}
    config = to_dict(TrainConfig(denoiser=DenoiserConfig(num_layers=0), seed=3))
    weights = {"scorer.score.weight": torch.zeros(1, 4)}
    trained = TrainedState(weights, weights, weights, 3)
    state = TrainingState(3, trained, config, statistics.tensors(), Origin("d", "m"))
    CheckpointStore(tmp_path / "checkpoints").save(state)
    load_gate(tmp_path, OneSizeVLM(), made)
    with pytest.raises(ConfigError, match=f"run=.* did not train this selector: {fact} differ"):
        load_gate(tmp_path, OneSizeVLM(), {**made, fact: "other"})


def test_features_of_later_layers_are_gated_and_not_repaired(tmp_path):
    """As in training: statistics cover them, the Denoiser does not."""
    vlm = OneSizeVLM(later=2)
    tokens = vlm.encode_images([sample.image for sample in make_samples(8)]).gated
    statistics = calibrate([tokens.flatten(0, 1)], None)
    denoiser = Denoiser(5, SMALL)
    torch.nn.init.normal_(denoiser.blocks[0].mlp_out.weight)
    weights = {f"denoiser.{name}": t.detach() for name, t in denoiser.state_dict().items()}
    config = to_dict(TrainConfig(denoiser=SMALL))
    state = TrainingState(
        3, TrainedState(weights, weights, weights, 3), config, statistics.tensors()
    )
    CheckpointStore(tmp_path / "checkpoints").save(state)
    with torch.no_grad():
        gate = load_gate(tmp_path, vlm, {})
        gated = uniformly_gated(gate, tokens, 4)
        visual = vlm.encode_images([sample.image for sample in make_samples(8)])
        outputs = SITES[gate.site].finish(vlm.adapter, visual, gated, repairs_of(gate)[REPAIRED])
        found, _ = vlm.adapter.tokens(visual.blocks, outputs, later=True)
    assert gated.shape == found.shape == tokens.shape
    assert torch.equal(gated[..., 5:], found[..., 5:])
    assert not torch.equal(gated[..., :5], found[..., :5])


def test_a_missing_training_run_is_named_before_a_run_begins(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    words = ["--model", "m", "--selector", "s", "--shards", "test-*.tar", "--budgets", "8"]
    assert main(["analyse", "leak", *words, "--out", str(tmp_path / "out")]) == 2
    assert "give --run" in capsys.readouterr().err + caplog.text
    assert not list(tmp_path.iterdir())


def test_a_training_run_is_refused_by_other_analyses(tmp_path, capsys, caplog):
    words = ["--model", "m", "--selector", "s", "--shards", "test-*.tar", "--budgets", "8"]
    out = ["--run", "runs/mine", "--out", str(tmp_path / "out")]
    assert main(["analyse", "gates", *words, *out]) == 2
    told = capsys.readouterr().err + caplog.text
    assert "run=runs/mine belongs to `analyse leak`, not to gates; leave it out" in told
