"""Measure the accuracy of a reference VLM per task family.

The VLM answers with all visual tokens, with random subsets of them, and with none ("blind").
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from autoselect.files.markdown import table_row
from autoselect.reference.questions import FAMILIES, ask
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.scenes import make_scene, scene_rng
from autoselect.vlm.backbone import FrozenVLM, chat
from autoselect.vlm.columns import PrunePlan
from autoselect.vlm.host import HostPrompt
from autoselect.vlm.text.placeholders import question_content

KEPT = {"full": None, "random 48": 48, "random 16": 16, "blind": 0}
IMAGES_PER_BATCH = 32
SEED = ReferenceData().seed
Table = dict[str, dict[str, float]]


def measure_vlm(path: str, images: int) -> Table:
    """Return the share of exactly right answers on the test split, by setting and family.

    Args:
        images: number of test images, each with one question of every family.
    """
    vlm = FrozenVLM.from_pretrained(path)
    right = {setting: dict.fromkeys(FAMILIES, 0) for setting in KEPT}
    asked = dict.fromkeys(FAMILIES, 0)
    for start in tqdm(range(0, images, IMAGES_PER_BATCH), desc="measuring", disable=None):
        indices = range(start, min(start + IMAGES_PER_BATCH, images))
        scenes = [make_scene(SEED, "test", index) for index in indices]
        questions = [
            (row, question)
            for row, (index, scene) in enumerate(zip(indices, scenes, strict=True))
            for question in ask(scene_rng(SEED + 1, "test", index), scene, FAMILIES)
        ]
        inputs = _inputs(vlm, [scenes[row].image for row, _ in questions], questions)
        outputs = vlm.adapter.encode(inputs)
        blocks = vlm.adapter.blocks(inputs["input_ids"], outputs)
        keys = np.random.default_rng([SEED, start]).random((len(scenes), len(blocks[0])))
        order = torch.from_numpy(keys).argsort(1)
        for _, question in questions:
            asked[question.family] += 1
        for setting, count in KEPT.items():
            kept = [order[row, :count].sort().values for row, _ in questions]
            plan = PrunePlan.of(HostPrompt.of(inputs), blocks, [len(own) for own in kept])
            answers = _answers(vlm, inputs, outputs, plan, torch.cat(kept))
            for (_, question), answer in zip(questions, answers, strict=True):
                right[setting][question.family] += answer == question.answer
    return {
        setting: {family: count / asked[family] for family, count in counts.items()}
        for setting, counts in right.items()
    }


def _inputs(vlm: FrozenVLM, images: list, questions: list) -> dict[str, Any]:
    """Return the prompts of some questions, each with its image."""
    contents = [question_content(own.question, 1) for _, own in questions]
    texts = [
        chat(vlm.processor, [{"role": "user", "content": content}], generation=True)
        for content in contents
    ]
    return vlm.inputs([[image] for image in images], texts)


@torch.inference_mode()
def _answers(
    vlm: FrozenVLM,
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    plan: PrunePlan,
    kept: Tensor,
) -> list[str]:
    """Return greedy answers to prompts without their removed tokens, at original positions."""
    mask = inputs["attention_mask"]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    pruned, _ = vlm.adapter.prune({**inputs, "position_ids": positions}, outputs, plan, kept)
    tokenizer = vlm.processor.tokenizer
    produced = vlm.model.generate(
        **pruned, max_new_tokens=3, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    new = produced[:, pruned["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def table(measured: Table, title: str = "visual tokens") -> str:
    """Return a Markdown table of what was measured, in per cent, with the mean over families."""
    families = list(next(iter(measured.values())))
    lines = [table_row([title, *families, "mean"]), "|---" * (len(families) + 2) + "|"]
    for setting, scores in measured.items():
        values = [*scores.values(), sum(scores.values()) / len(scores)]
        lines.append(table_row([setting, *(f"{100 * value:.1f}" for value in values)]))
    return "\n".join(lines)
