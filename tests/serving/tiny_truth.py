"""Write tiny models and what `attach()` makes of them: `... tiny_truth FOLDER NAME...`."""

import sys
import traceback
from pathlib import Path

import torch

from autoselect import Selector, attach
from autoselect.config import ScorerConfig
from autoselect.method.scorer import Scorer
from tests.serving import tiny
from tests.serving.cases import NEW_TOKENS, Found, save

BUDGET = 0.3


def main(folder: Path, names: list[str]) -> None:
    torch.manual_seed(5)
    selector = Selector(Scorer(tiny.WIDTH, ScorerConfig()), {"model": "tiny"}, 0.3)
    selector.save_pretrained(folder / "selector")
    for name in names:
        try:
            write(folder / name, name, selector)
        except Exception:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "error.txt").write_text(traceback.format_exc())


def write(folder: Path, name: str, selector: Selector) -> None:
    """Write the model, its answers with all tokens (`full/`), and with pruned ones (`pruned/`)."""
    model, processor = tiny.build(name, folder)
    model.generation_config.eos_token_id = None
    for kind in ("full", "pruned"):
        if kind == "pruned":
            attach(model, selector, BUDGET)
        found = []
        for images in tiny.PROMPTS:
            inputs = processor(
                images=[tiny.image(number) for number in images],
                text=tiny.text(name, images),
                return_tensors="pt",
            )
            if name == "gemma3":
                # vLLM's CPU kernels know no attention in both directions within an image.
                inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
            output = model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
            found.append(Found(ids, output.logits[0][0].float().log_softmax(-1).numpy()))
        (folder / kind).mkdir()
        save(folder / kind, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
