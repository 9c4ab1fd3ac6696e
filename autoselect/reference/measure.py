"""Measure the accuracy of a reference VLM per task family.

The VLM answers with all visual tokens, with random subsets of them, and with none ("blind").
"""

import numpy as np
import torch
from tqdm import tqdm

from autoselect.reference.questions import FAMILIES, ask
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.scenes import make_scene, scene_rng
from autoselect.vlm.backbone import FrozenVLM

KEPT = {"full": None, "random 48": 48, "random 16": 16, "blind": 0}
IMAGES_PER_BATCH = 32
Table = dict[str, dict[str, float]]


def measure_vlm(path: str, images: int, seed: int = ReferenceData().seed) -> Table:
    """Return the share of exactly right answers on the test split, by setting and family.

    Args:
        images: number of test images, each with one question of every family.
    """
    vlm = FrozenVLM.from_pretrained(path)
    right = {setting: dict.fromkeys(FAMILIES, 0) for setting in KEPT}
    asked = dict.fromkeys(FAMILIES, 0)
    for start in tqdm(range(0, images, IMAGES_PER_BATCH), desc="measuring", disable=None):
        indices = range(start, min(start + IMAGES_PER_BATCH, images))
        scenes = [make_scene(seed, "test", index) for index in indices]
        visual = vlm.encode_images([scene.image for scene in scenes]).tokens
        questions = [
            (row, question)
            for row, (index, scene) in enumerate(zip(indices, scenes, strict=True))
            for question in ask(scene_rng(seed + 1, "test", index), scene, FAMILIES)
        ]
        rows = torch.tensor([row for row, _ in questions])
        prompt = vlm.prompt([question.question for _, question in questions])
        for _, question in questions:
            asked[question.family] += 1
        for setting, kept in KEPT.items():
            positions = None
            tokens = visual
            if kept is not None:
                keys = np.random.default_rng([seed, start]).random(visual.shape[:2])
                positions = torch.from_numpy(keys).argsort(1)[:, :kept].sort(1).values
                tokens = visual.gather(1, positions[..., None].expand(-1, -1, visual.shape[-1]))
                positions = positions[rows]
            answers = vlm.generate(vlm.prefix(prompt, tokens[rows], positions), 3)
            for (_, question), answer in zip(questions, answers, strict=True):
                right[setting][question.family] += answer == question.answer
    return {
        setting: {family: count / asked[family] for family, count in counts.items()}
        for setting, counts in right.items()
    }


def table(measured: Table) -> str:
    lines = [
        f"| visual tokens | {' | '.join(FAMILIES)} | mean |",
        "|---" * (len(FAMILIES) + 2) + "|",
    ]
    for setting, scores in measured.items():
        values = [*scores.values(), sum(scores.values()) / len(scores)]
        lines.append(f"| {setting} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
    return "\n".join(lines)
