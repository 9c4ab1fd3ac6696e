"""Removal by hiding tokens from attention is the removal that users get, and the gap by hand."""

import dataclasses

import pytest
import torch

from autoselect.config import DenoiserConfig, GateConfig, ScorerConfig, TrainConfig
from autoselect.method.gating import open_at
from autoselect.method.model import AutoSelect
from autoselect.method.removal import (
    Outcome,
    RemovalGap,
    answer_lengths,
    forced_outcome,
    random_removal,
    removal_gaps,
)
from autoselect.method.statistics import calibrate
from autoselect.ops.hard_top_k import hard_top_k
from autoselect.pruning.attachment import keeping
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm.backbone import FrozenVLM
from autoselect.vlm.batches.batch import Collator
from autoselect.vlm.patches import run_tower
from tests.vlm.scene_samples import ROUNDS, sample
from tests.vlm.stock import features_of, visual_of

CONFIG = TrainConfig(
    scorer=ScorerConfig(hidden_size=16, num_heads=2),
    denoiser=DenoiserConfig(num_layers=1, hidden_size=16),
    gate=GateConfig(token_budget=16, noise_rank=8),
)


BEST = {"best": lambda scores, _, count, mask: hard_top_k(scores, count, mask)}


@pytest.fixture(scope="module")
def vlm():
    return FrozenVLM(build_model(1), build_processor(), "tiny")


@pytest.fixture(scope="module")
def batch(vlm):
    return Collator(vlm, "conversation")([sample(0, ROUNDS[:1]), sample(1, ROUNDS[:1])])


@pytest.fixture
def model(vlm, batch):
    torch.manual_seed(0)
    return AutoSelect(vlm, CONFIG, calibrate([features_of(vlm, batch)], 8)).train()


def test_an_answer_is_a_run_of_labels_in_one_row_and_segment():
    labels = torch.tensor([[-100, 5, 6, -100, 7], [8, 9, 9, -100, -100]])
    segments = torch.tensor([[-1, 0, 0, 0, 0], [0, 0, 1, 1, 1]])
    assert answer_lengths(labels, segments) == [2, 1, 2, 1]
    assert answer_lengths(torch.full((1, 3), -100), torch.zeros(1, 3)) == []


def test_hidden_tokens_give_the_loss_of_removed_ones(vlm, batch):
    """The stock model with the tokens taken out of its input says the same."""
    visual = visual_of(vlm, batch)
    positions = torch.tensor([[3, 40, 99], [0, 1, 143]])
    kept = visual.real(open_at(positions, visual.tokens.shape[1])).bool()
    hidden = forced_outcome(vlm, batch, visual.outputs, kept)
    whole = forced_outcome(vlm, batch, visual.outputs)
    assert hidden.answers == whole.answers == 2 and hidden.tokens == batch.num_answer_tokens
    assert abs(hidden.loss_sum - whole.loss_sum) > 1e-3
    total = 0.0
    for row in range(2):
        real = batch.segments[row] >= 0
        call = {"input_ids": batch.input_ids[row : row + 1, real]}
        features = visual.outputs["image"].pooler_output[row]
        outputs = {"image": dataclasses.replace(visual.outputs["image"], pooler_output=[features])}
        with keeping(vlm.model, [positions[row]]) as attachment, torch.no_grad():
            logits = vlm.model(**call, mm_encoder_outputs=outputs).logits[0]
            columns = attachment.last.columns[0]
        labels = batch.labels[row, real][columns]
        log_probabilities = logits.float().log_softmax(dim=-1)
        for place in (labels != -100).nonzero()[:, 0].tolist():
            total -= float(log_probabilities[place, labels[place]])
    assert hidden.loss_sum == pytest.approx(total, abs=1e-3)


def test_keeping_every_token_leaves_no_gap(model, batch):
    (found,) = removal_gaps(model, [batch, batch], [144], BEST)["best"]
    assert found.full == found.removed and found.full.answers == 4
    assert found.gap == found.ending_gap == 0 and found.warning() is None
    _, few = removal_gaps(model, [batch], [144, 4], BEST)["best"]
    assert few.removed.loss_sum != few.full.loss_sum != few.filled.loss_sum
    assert model.training, "the mode is left alone"


def test_every_choice_is_measured_as_if_alone(model, batch):
    worst = {"worst": lambda scores, _, count, mask: hard_top_k(-scores, count, mask)}
    both = removal_gaps(model, [batch], [4], BEST | worst)
    alone = removal_gaps(model, [batch], [4], BEST) | removal_gaps(model, [batch], [4], worst)
    assert both == alone and both["best"] != both["worst"]


def test_the_gap_by_hand():
    full, filled = Outcome(10.0, 20, 10, 9, 10), Outcome(12.0, 20, 10, 8, 9)
    found = RemovalGap(8, full, Outcome(30.0, 20, 10, 5, 2), filled)
    assert found.gap == pytest.approx(0.3) and found.ending_gap == pytest.approx(0.7)
    assert found.metrics()["removal/removed/loss"] == 1.5
    assert found.metrics()["removal/full/unended"] == 0
    assert "30.0 points fewer right answers and 70.0 points more unended" in found.warning()
    assert found.warning(limit=0.7 + 1e-9) is None


def test_random_removal_is_reproducible_and_harmless_if_all_tokens_stay(vlm, batch):
    found = random_removal(vlm, [batch], (4, 144))
    assert found[144] == found[None] and found[4] != found[None]
    assert random_removal(vlm, [batch], (4,))[4] == found[4]
    assert random_removal(vlm, [batch], (4,), seed=1)[4] != found[4]


@pytest.mark.parametrize("site", ["before_projector", "before_encoder"])
def test_at_an_earlier_site_removal_is_what_an_attached_selector_does(vlm, batch, site):
    config = dataclasses.replace(CONFIG, gate=GateConfig(site=site, noise_rank=8))
    visual = visual_of(vlm, batch, site)
    torch.manual_seed(0)
    model = AutoSelect(vlm, config, calibrate([visual.gated.flatten(0, 1)], 8)).eval()
    whole, few = removal_gaps(model, [batch], [144, 4], BEST)["best"]
    stock = forced_outcome(vlm, batch, visual_of(vlm, batch).outputs)
    assert whole.full.loss_sum == pytest.approx(stock.loss_sum, rel=1e-6)
    assert whole.removed.loss_sum == pytest.approx(stock.loss_sum, rel=1e-6)
    positions = hard_top_k(model.scorer(visual.tokens).detach().float(), 4)
    outputs = vlm.adapter.encode(vlm.to_device(batch.pixels))
    if site == "before_encoder":
        features = visual.outputs["image"]
        kept = features.entries.gather(1, positions[..., None].expand(-1, -1, 128))
        alone = run_tower(vlm.adapter, kept, features.extra)["image"].pooler_output
        for entry, place, own in zip(outputs["image"].pooler_output, positions, alone, strict=True):
            entry[place] = own
    mask = open_at(positions, visual.tokens.shape[1]).bool()
    expected = forced_outcome(vlm, batch, outputs, mask.flatten())
    assert few.removed.loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)
    assert few.removed.loss_sum != pytest.approx(stock.loss_sum, rel=1e-3)
