"""The gap of removal: which Scorer and Denoiser it is measured with, and of which training."""

import shutil
from dataclasses import replace

import pytest
import torch

from autoselect.config import ConfigError, ScorerConfig, TrainConfig
from autoselect.config.files import to_dict
from autoselect.data.order import epoch_slice
from autoselect.data.shards import ShardSet
from autoselect.method.model import AutoSelect
from autoselect.method.removal import Outcome, RemovalGap
from autoselect.method.scorer import Scorer
from autoselect.method.statistics import TokenStatistics
from autoselect.pruning.selector import Selector
from autoselect.training.checkpoint import CheckpointStore
from autoselect.training.engine_state import TrainedState
from autoselect.training.state import TrainingState
from autoselect.tuning import gap, run
from autoselect.tuning.samples import tuning_samples
from autoselect.tuning.settings import TuneSettings
from autoselect.vlm import FrozenVLM


@pytest.fixture
def training(model_folder, tmp_path):
    """Return a model and a run folder whose last checkpoint holds other weights than 0."""
    vlm, config = FrozenVLM.from_pretrained(model_folder), TrainConfig()
    statistics = TokenStatistics(torch.zeros(192), torch.ones(192), participation_ratio=9.0)
    torch.manual_seed(1)
    model = AutoSelect(vlm, config, statistics)
    weights = {n: torch.randn_like(p) for n, p in model.named_parameters() if p.requires_grad}
    state = TrainingState(3, TrainedState(weights), to_dict(config), statistics.tensors())
    CheckpointStore(tmp_path / "checkpoints").save(state)
    return vlm, weights


def settings_of(model, shards, folder, weights, images):
    """Return a short search of the selector and the training in a folder."""
    return TuneSettings(
        model=model,
        selector=str(folder / "selector"),
        shards=shards,
        train_run=str(folder),
        budgets="4",
        weights=weights,
        images=images,
        questions=1,
        max_new_tokens=2,
        tracking=False,
    )


def test_the_gap_is_that_of_the_selector_and_not_of_the_last_scorer(
    training, tmp_path, selector_folder, monkeypatch
):
    """Early stopping exports the best selector, and the checkpoint goes on from a later one."""
    vlm, weights = training
    measured = []
    monkeypatch.setattr(gap, "removal_gaps", lambda model, *_: measured.append(model) or [])
    selector = Selector.from_pretrained(selector_folder)
    gap.measure_gaps(vlm, selector, (), (4,), gap.last_state(str(tmp_path), selector))
    model = measured[0]
    own = selector.scorer.state_dict()
    assert all(torch.equal(own[name], t) for name, t in model.scorer.state_dict().items())
    for name, tensor in model.denoiser.state_dict().items():
        assert torch.equal(tensor, weights[f"denoiser.{name}"])


@pytest.mark.parametrize(("patience", "held_out"), [(0, 1), (4, 0)])
def test_after_an_early_stop_rows_of_the_denoiser_are_not_held_out(
    training, model_folder, selector_folder, shards, tmp_path, patience, held_out
):
    """Of five rows, the selector used two, the Denoiser four; the last one chose the selector.

    A search without the Denoiser asks for rows that are new to the selector.
    """
    store = CheckpointStore(tmp_path / "checkpoints")
    state, _ = store.first_usable()
    config = state.config | {"validation": {"every": 1, "patience": patience, "images": 1}}
    store.save(replace(state, step=4, config=config))
    selector = Selector.from_pretrained(selector_folder)
    data = ShardSet.open(shards)
    selector.metadata |= {"data_digest": data.digest, "seed": 0, "steps": 2, "samples": 2}
    selector.save_pretrained(tmp_path / "selector")
    settings = settings_of(model_folder, shards, tmp_path, weights="0", images=2)
    assert run.tune(settings).report["held_out"] == held_out
    assert run.tune(replace(settings, train_run=None)).report["held_out"] == 2
    order = epoch_slice(5, 0, 0, 0, 5).tolist()
    chosen = tuning_samples(data, gap.rows_of_run(selector, store.first_usable()[0]), 2, 1)
    assert [row.sample_id for row in chosen.rows] == [order[4], order[0]]


@pytest.mark.parametrize("unended", [0, 30])
def test_the_warning_is_that_of_the_worst_budget_endings_included(unended):
    """At 8 tokens one answer in a hundred is lost; at 16 none, but some do not end."""
    whole = Outcome(1.0, 100, 100, 100, 100)
    small = RemovalGap(8, whole, replace(whole, right=99), whole)
    large = RemovalGap(16, whole, replace(whole, ended=100 - unended), whole)
    found = gap.gap_warning({gap.SELECTED: [small, large]})
    assert found == large.warning()
    assert (found is None) == (unended == 0)


def test_a_search_that_is_repeated_measures_the_gap_once(
    training, model_folder, selector_folder, shards, tmp_path, monkeypatch
):
    shutil.copytree(selector_folder, tmp_path / "selector")
    settings = settings_of(model_folder, shards, tmp_path, weights="0,0.5", images=2)
    first = run.tune(settings)
    assert {row["selection"] for row in first.report["gaps"]} == {gap.SCORES, gap.SELECTED}
    monkeypatch.setattr(run, "measure_gaps", None)
    assert run.tune(settings).report == first.report


@pytest.mark.parametrize(
    "gate",
    [
        *({"kind": kind} for kind in ("zero_fill", "multiplicative")),
        *({"kind": kind, "soft_removal": True} for kind in ("none", "noise")),
    ],
)
def test_a_training_that_filled_nothing_has_no_gap(
    training, model_folder, selector_folder, shards, tmp_path, gate, caplog
):
    """Its Denoiser never repaired what the gap would show it."""
    store = CheckpointStore(tmp_path / "checkpoints")
    state, _ = store.first_usable()
    store.save(replace(state, step=4, config=state.config | {"gate": gate}))
    shutil.copytree(selector_folder, tmp_path / "selector")
    settings = settings_of(model_folder, shards, tmp_path, weights="0", images=1)
    with caplog.at_level("INFO"):
        assert "gaps" not in run.tune(settings).report
    assert f"no noise stand in for closed tokens (gate.kind={gate['kind']}, " in caplog.text


def test_the_run_of_another_selector_is_refused(training, tmp_path):
    other = Selector(Scorer(192, ScorerConfig(hidden_size=8)), {})
    with pytest.raises(ConfigError, match="trained a selector of another size or site"):
        gap.last_state(str(tmp_path), other)
    alike = CheckpointStore(tmp_path / "checkpoints").first_usable()[0].train_config().scorer
    other = Selector(Scorer(192, alike), {"seed": 99})
    with pytest.raises(ConfigError, match="train_run=.* did not train this selector: seed differ"):
        gap.last_state(str(tmp_path), other)
    with pytest.raises(ConfigError, match="nowhere has no usable checkpoints"):
        gap.last_state("/nowhere", other)
