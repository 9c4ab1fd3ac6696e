"""The claim of the paper's figure 5, on the reference VLM: noise gating stands in for removal."""

import pytest

from autoselect.evaluation.analyses.fidelity import (
    NOISE,
    REMOVAL,
    gating_fidelity,
    token_statistics,
)
from autoselect.evaluation.samples import EvaluationSample
from autoselect.reference.questions import FAMILIES, ask
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.reference.scenes import make_scene, scene_rng
from autoselect.vlm import FrozenVLM

IMAGES = 48


def scene_sample(index):
    """One scene that the reference VLM never saw, with a question of each family."""
    scene = make_scene(7, "test", index)
    asked = ask(scene_rng(8, "test", index), scene, FAMILIES)
    return EvaluationSample(
        key=str(index),
        image=scene.image,
        questions=tuple(q.question for q in asked),
        answers=tuple((q.answer,) for q in asked),
        tasks=tuple(q.family for q in asked),
        boxes=tuple(q.boxes for q in asked),
    )


@pytest.mark.slow
@pytest.mark.skipif(
    not (MODEL_FOLDER / "model.safetensors").is_file(), reason="no reference VLM in this checkout"
)
def test_noise_gating_and_hard_removal_lose_the_same_under_random_scores():
    vlm = FrozenVLM.from_pretrained(MODEL_FOLDER)
    samples = [scene_sample(index) for index in range(IMAGES)]
    statistics = token_statistics(vlm, samples)
    found = gating_fidelity(vlm, samples, (16, 64, 144), statistics)
    removal, noise = found["curves"][REMOVAL], found["curves"][NOISE]
    assert removal[0] + 0.1 < removal[2], "a budget of a ninth costs accuracy"
    assert noise[2] == removal[2], "with every token kept nothing is noise"
    for row in found["gaps"]:
        low, high = row["ci95"]
        assert low <= 0 <= high or abs(row["gap"]) <= 0.05, row
