"""What `attach()` on transformers gives: `python -m tests.serving.truth FOLDER`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from autoselect import Selector, attach
from tests.serving.cases import NEW_TOKENS, REFERENCE, Case, Found, save


def main(folder: Path) -> None:
    job = json.loads((folder / "cases.json").read_text())
    processor = AutoProcessor.from_pretrained(REFERENCE, backend="pil")
    dtype = getattr(torch, job["dtype"])
    model = LlavaForConditionalGeneration.from_pretrained(REFERENCE, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    attach(model, Selector.from_pretrained(job["selector"]), 1.0)
    found = []
    for row in job["cases"]:
        case = Case(**{**row, "scenes": tuple(row["scenes"])})
        inputs = processor(images=case.images or None, text=case.text, return_tensors="pt")
        extra = {"visual_token_budget": case.budget} if case.images else {}
        with torch.no_grad():
            found.append(answer(model, inputs, **extra))
    save(folder, found)


def answer(model: Any, inputs: Any, **more: Any) -> Found:
    """Return the answer to one prompt, and the log-probabilities of its first token."""
    output = model.generate(
        **inputs,
        **more,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return Found(ids, output.logits[0][0].float().log_softmax(-1).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
