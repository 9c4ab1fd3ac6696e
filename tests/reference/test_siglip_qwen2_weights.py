"""The weights of the second reference VLM: small, and measured like users generate."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import autoselect.reference.siglip_qwen2 as package
from autoselect.reference.corpus import encode_slots
from autoselect.reference.documents.pages import ask_page, make_page
from autoselect.reference.siglip_qwen2.dense import tower_features
from autoselect.reference.siglip_qwen2.language import all_kept
from autoselect.reference.siglip_qwen2.measure import exactly_right
from autoselect.reference.siglip_qwen2.train import VARIANTS

FOLDER = Path(package.__file__).parent
PAGES = 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_is_at_most_eight_megabytes(variant):
    assert (FOLDER / variant / "model.safetensors").stat().st_size <= 8_000_000


def test_the_variants_differ_in_projector_and_language_model_only():
    weights = [
        AutoModelForImageTextToText.from_pretrained(FOLDER / name).state_dict() for name in VARIANTS
    ]
    different = {name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert different and not any("vision_tower" in name for name in different)


def test_greedy_generation_gives_what_the_measure_counts():
    """The packed pass counts an answer as right exactly if `generate` returns it and ends."""
    model = AutoModelForImageTextToText.from_pretrained(FOLDER / "removal", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(FOLDER / "removal")
    end, agreed, asked = processor.tokenizer.eos_token_id, 0, 0
    for index in range(PAGES):
        page = make_page(1, "test", index)
        questions = ask_page(page, 4)
        texts = [f"<s><user><image>{q.question}<assistant>" for q in questions]
        images = [page.image] * len(texts)
        inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            given = model.generate(**inputs, max_new_tokens=8, do_sample=False)
            features = tower_features(model, inputs["pixel_values"][:1])
            tokens, starts = (
                torch.from_numpy(a.astype(np.int64))[None]
                for a in encode_slots(questions, processor.tokenizer, np.int64)
            )
            right = exactly_right(model, features, all_kept(1), tokens, starts)[0]
        for row, question in enumerate(questions):
            answer = given[row, inputs["input_ids"].shape[1] :]
            text = processor.tokenizer.decode(answer, skip_special_tokens=True)
            agreed += (text == question.answer) == bool(right[row])
            asked += 1
        assert bool((given == end).any(dim=1).all())
    assert agreed == asked
