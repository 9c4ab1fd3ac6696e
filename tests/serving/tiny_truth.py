"""Write tiny models and what `attach()` makes of them: `... tiny_truth FOLDER NAME...`."""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from autoselect import Selector, attach
from autoselect.config import ScorerConfig
from autoselect.method.scorer import Scorer
from tests.serving import tiny
from tests.serving.cases import Found, save
from tests.serving.truth import answer


def clear_budget(scores: list[torch.Tensor]) -> int:
    """Return the K of a fifth to a half of the tokens with the widest gap of scores behind it.

    Tokens that are equal, such as ends of rows, have equal scores, and which of them stay depends
    on the last bit.
    """
    ordered = [own.sort(descending=True).values for own in scores]
    fewest = min(map(len, ordered))
    return max(
        range(max(2, fewest // 5), fewest // 2),
        key=lambda k: min(float(own[k - 1] - own[k]) for own in ordered),
    )


def main(folder: Path, names: list[str]) -> None:
    torch.manual_seed(5)
    selector = Selector(Scorer(tiny.WIDTH, ScorerConfig()), {"model": "tiny"})
    selector.save_pretrained(folder / "selector")
    before = Selector(
        Scorer(tiny.PROJECTED, ScorerConfig()), {"model": "tiny"}, site="before_projector"
    )
    before.save_pretrained(folder / "before")
    for name in names:
        try:
            write(folder / name, name, selector)
            if name in tiny.BEFORE_PROJECTOR:
                write(folder / f"{name}{tiny.BEFORE}", name, before)
        except Exception:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "error.txt").write_text(traceback.format_exc())


def write(folder: Path, name: str, selector: Selector) -> None:
    """Write the model, the budget of each prompt, and its answers, `full/` and `pruned/`.

    `name` is that of the family.
    """
    model, processor = tiny.build(name, folder)
    model.generation_config.eos_token_id = None
    prompts = [inputs_of(name, processor, images) for images in tiny.PROMPTS]
    write_answers(folder / "full", [answer(model, inputs) for inputs in prompts])
    attach(model, selector, 1.0)
    found, budgets = [], []
    for inputs in prompts:
        answer(model, inputs)
        budget = clear_budget([own.scores for own in model.autoselect.last.images])
        found.append(answer(model, inputs, visual_token_budget=budget))
        budgets.append(budget)
    write_answers(folder / "pruned", found)
    (folder / "budgets.json").write_text(json.dumps(budgets))


def inputs_of(name: str, processor: Any, images: tuple[int, ...]) -> Any:
    inputs = processor(
        images=[tiny.image(number) for number in images],
        text=tiny.text(name, images),
        return_tensors="pt",
    )
    if name == "gemma3":
        # vLLM's CPU kernels know no attention in both directions within an image.
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return inputs


def write_answers(folder: Path, found: list[Found]) -> None:
    folder.mkdir()
    save(folder, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
