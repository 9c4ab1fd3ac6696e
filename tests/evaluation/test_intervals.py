import numpy as np
import pytest

from autoselect.evaluation.scores.intervals import Resampling, interval, retention, task_retentions
from autoselect.evaluation.scores.scoring import ScoreTable


def table(scores):
    """Return one question of one task per image."""
    sums = np.asarray(scores, dtype=float)[:, None]
    return ScoreTable(("task",), sums, np.ones_like(sums))


def test_retention_is_the_mean_over_tasks_of_the_ratio():
    counts = np.full((1, 2), 10)
    full = ScoreTable(("a", "b"), np.array([[10, 4]]), counts)
    kept = ScoreTable(("a", "b"), np.array([[5, 4]]), counts)
    assert task_retentions(kept, full) == {"a": 0.5, "b": 1.0}
    assert retention(kept, full) == 0.75
    nothing = ScoreTable(("a", "b"), np.zeros((1, 2)), counts)
    assert np.isnan(retention(kept, nothing))


def test_intervals_cover_a_known_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        easy = rng.random(150)
        full = table(rng.random(150) < 0.5 + 0.4 * easy)
        kept = table(full.sums[:, 0] * (rng.random(150) < 0.8))
        low, high = interval(Resampling.of(150, 300, seed=trial).retention(kept, full))
        covered += low <= 0.8 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_pairing_makes_a_difference_narrower_than_its_parts():
    rng = np.random.default_rng(0)
    shared = rng.random(300) < 0.6
    first = table(shared)
    second = table(shared & (rng.random(300) < 0.97))
    full = table(np.ones(300))
    draws = Resampling.of(300)
    gap = draws.retention(first, full) - draws.retention(second, full)
    width = np.subtract(*interval(gap)[::-1])
    assert width < 0.5 * np.subtract(*interval(draws.retention(first, full))[::-1])


def test_equal_answers_have_retention_one_in_every_draw():
    same = table(np.arange(40) % 3 == 0)
    assert Resampling.of(40).retention(same, same) == pytest.approx(1.0)


def test_draws_that_miss_a_part_of_a_task_count_its_other_parts():
    """Fourteen subtasks of one image each: hardly any draw holds all of them."""
    parts = tuple(f"mme::{number:02d}" for number in range(14))
    full = ScoreTable(parts, np.eye(14), np.eye(14))
    own = ScoreTable(parts, np.diag([1.0, 1.0, 0.0] * 4 + [1.0, 1.0]), np.eye(14))
    draws = Resampling.of(14).retention(own, full)
    assert np.isfinite(draws).all()
    low, high = interval(draws)
    assert low < retention(own, full) < high


def test_samples_that_show_one_image_are_drawn_together():
    alone = Resampling.over("abc")
    assert np.array_equal(alone.weights, Resampling.of(3).weights)
    assert np.array_equal(Resampling.over("abacb").weights, alone.weights[:, [0, 1, 0, 2, 1]])


def test_one_row_per_question_has_the_interval_of_one_row_per_image():
    """Six questions about each of fifty images, all right or all wrong."""
    right = np.random.default_rng(0).random(50) < 0.6
    sums = 6.0 * right[:, None]
    by_image = ScoreTable(("task",), sums, np.full_like(sums, 6.0))
    full = ScoreTable(("task",), by_image.counts, by_image.counts)
    wanted = interval(Resampling.of(50).retention(by_image, full))
    rows, whole = table(right.repeat(6)), table(np.ones(300))
    found = Resampling.over([str(image) for image in range(50) for _ in range(6)])
    assert interval(found.retention(rows, whole)) == pytest.approx(wanted)
