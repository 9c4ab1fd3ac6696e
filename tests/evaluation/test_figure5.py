"""The claim of the paper's figure 5, on the reference VLM: noise gating stands in for removal."""

import pytest

from autoselect.evaluation.analyses.fidelity import (
    REMOVAL,
    gating_fidelity,
    token_noises,
)
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.samples import EvaluationSample
from autoselect.reference.questions import FAMILIES, ask
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.reference.scenes import make_scene, scene_rng
from autoselect.vlm import FrozenVLM

IMAGES = 40


def scene_sample(index):
    """Return one scene that the reference VLM never saw, with a question of each family."""
    scene = make_scene(7, "test", index)
    asked = ask(scene_rng(8, "test", index), scene, FAMILIES)
    return EvaluationSample(
        key=str(index),
        images=(scene.image,),
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
    found = gating_fidelity(AskedVLM(vlm), samples, (8, 16), token_noises(vlm, samples), 4)
    assert max(found["curves"][REMOVAL]) < 0.75, "a random ninth of the tokens is not enough"
    for row in found["gaps"]:
        low, high = row["ci95"]
        assert low <= 0 <= high, row
