"""Intervals over seeds and images have their nominal coverage; pairing removes shared effects."""

import json

import numpy as np
import pytest

from autoselect.ablation.outcome import evaluated, stored_scores
from autoselect.ablation.spread import Measured, estimate
from autoselect.evaluation.scores.intervals import Resampling
from autoselect.evaluation.scores.scoring import ScoreTable

IMAGES, SEEDS = 80, 3


def measured(scores, draws):
    table = ScoreTable(("t",), scores[:, None], np.ones((len(scores), 1)))
    return Measured(float(scores.mean()), draws.task_means(table)[:, 0])


@pytest.mark.parametrize("seed_deviation", [0.0, 0.05])
def test_the_interval_covers_the_truth(seed_deviation):
    rng = np.random.default_rng(0)
    draws = Resampling.of(IMAGES, draws=400)
    covered, runs, truth = 0, 300, 0.6
    for _ in range(runs):
        difficulty = rng.normal(0, 0.15, IMAGES)
        seeds = []
        for effect in rng.normal(0, seed_deviation, SEEDS):
            chance = np.clip(truth + difficulty + effect, 0, 1)
            seeds.append(measured((rng.random(IMAGES) < chance).astype(float), draws))
        found = estimate(seeds)
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / runs <= 1.0


def test_by_hand():
    constant = np.full(100, 0.5)
    found = estimate([Measured(value, constant) for value in (0.4, 0.5, 0.6)])
    half = 4.303 * 0.1 / 3**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert found.covers == "seeds and images"
    single = estimate([Measured(0.5, np.linspace(0.4, 0.6, 201))])
    assert (single.low, single.high) == pytest.approx((0.405, 0.595))
    assert single.covers == "images only"


def test_a_shared_seed_effect_cancels_in_a_paired_difference():
    rng = np.random.default_rng(1)
    draws = Resampling.of(IMAGES, draws=400)
    ones, twos = [], []
    for effect in (-0.2, 0.0, 0.2):
        scores = np.clip(rng.random(IMAGES) + effect, 0, 2)
        ones.append(measured(scores, draws))
        twos.append(measured(scores - 0.05, draws))
    alone = estimate(ones)
    gap = estimate([one - two for one, two in zip(ones, twos, strict=True)])
    assert gap.mean == pytest.approx(0.05) and gap.high - gap.low < 1e-4
    assert alone.high - alone.low > 0.4


@pytest.mark.parametrize(("digests", "kept"), [("aba", [0, 1, 0]), ("abc", None)])
def test_an_outcome_tells_samples_of_one_image(tmp_path, digests, kept):
    lines = [
        {"key": f"{number}", "image_digest": digest, "round": 0, "task": "t", "question": "q"}
        | {"answers": ["a"], "predictions": {"full@0#0": "a"}}
        for number, digest in enumerate(digests)
    ]
    (tmp_path / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "report.json").write_text("{}")
    outcome = evaluated(tmp_path)
    assert outcome["scores"].get("pictures") == kept
    found = stored_scores(json.loads(json.dumps(outcome))).pictures
    assert [found.index(one) for one in found] == [digests.index(one) for one in digests]
