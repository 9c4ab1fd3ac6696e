"""The second reference VLM: stock modules, uniform removal, packed questions, exact resuming."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from autoselect.cli import main as cli
from autoselect.config import ConfigError
from autoselect.reference import stage
from autoselect.reference.corpus import IGNORED, pixels
from autoselect.reference.documents.lexicon import CHARACTERS, PRINTED
from autoselect.reference.documents.pages import make_page
from autoselect.reference.scenes import make_scene
from autoselect.reference.siglip_qwen2 import labels as dense_labels
from autoselect.reference.siglip_qwen2.corpus import build_mixed_corpus
from autoselect.reference.siglip_qwen2.language import all_kept, draw_removal
from autoselect.reference.siglip_qwen2.recipe import MixedTraining
from autoselect.reference.siglip_qwen2.train import VARIANTS, train_mixed_vlm
from autoselect.reference.siglip_qwen2.vlm import (
    GRID,
    NUM_VISUAL_TOKENS,
    build_model,
    build_processor,
    save_vlm,
)
from autoselect.reference.train_language import answer_logits
from autoselect.reference.train_tower import tower_features

TINY = MixedTraining(
    images=8,
    tower_steps=2,
    language_steps=2,
    variant_steps=1,
    tower_batch=4,
    language_batch=2,
    save_every=1,
    seed=9,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_mixed_corpus(tmp_path_factory.mktemp("mixed"), 4, 9, workers=1)


def test_the_saved_model_is_small_half_precision_and_stock(tmp_path):
    model = build_model(1)
    save_vlm(model, tmp_path)
    assert 3e6 <= sum(p.numel() for p in model.parameters()) <= 8e6
    assert (tmp_path / "model.safetensors").stat().st_size <= 8e6
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16 and type(loaded).__module__.startswith("transformers.")
    assert loaded.config.vision_config.model_type == "siglip_vision_model"
    assert loaded.config.text_config.model_type == "qwen2"
    inputs = processor(
        images=[make_page(9, "test", 0).image], text=["<image>"], return_tensors="pt"
    )
    assert int((inputs["input_ids"] == loaded.config.image_token_index).sum()) == NUM_VISUAL_TOKENS


def test_packed_questions_equal_prompts_of_their_own(corpus):
    """The first answer token of each question has the logits of a prompt with that question."""
    model, processor = build_model(2).eval(), build_processor()
    for row in range(2):
        tokens = torch.from_numpy(corpus.tokens[row : row + 1].astype(np.int64))
        starts = torch.from_numpy(corpus.starts[row : row + 1].astype(np.int64))
        picture = pixels(corpus.images[[row]])
        with torch.no_grad():
            features = tower_features(model, picture)
            logits, _, rows = answer_logits(model, features, all_kept(1), tokens, starts)
        for slot in rows.unique().tolist():
            question = tokens[0, slot, : int(starts[0, slot])]
            image = torch.full((NUM_VISUAL_TOKENS,), model.config.image_token_index)
            ids = torch.cat([torch.tensor([1, 5]), image, question])[None]
            with torch.no_grad():
                alone = model(input_ids=ids, pixel_values=picture).logits[0, -1]
            first = int((rows == slot).nonzero()[0])
            torch.testing.assert_close(alone, logits[first], rtol=1e-3, atol=1e-3)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]}],
        add_generation_prompt=True,
    )
    assert text == "<s><user><image>what<assistant>"


def test_the_corpus_shows_the_pixels_that_the_processor_makes(corpus):
    processor = build_processor()
    page = Image.fromarray(corpus.images[1])
    made = processor.image_processor(images=[page], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made, pixels(corpus.images[[1]]), rtol=0, atol=1e-5)


def test_dense_labels_of_a_page_spell_its_words():
    """Along each word, the left and right characters of its patches spell its letters in order."""
    page = make_page(9, "train", 3)
    channels = dense_labels.page_labels(page).reshape(-1, GRID, GRID)
    for word in page.words:
        place = (word.box[1] + word.box[3]) / 2 / 8 - 0.5
        row = min(range(GRID), key=lambda r: abs(r - place))
        spelled = [
            CHARACTERS[channels[side, row, column] - 1]
            for column in range(GRID)
            for side in (0, 1)
            if word.edges[0] <= 8 * column + (2, 6)[side] < word.edges[-1]
            and 0 < channels[side, row, column] < IGNORED
        ]
        order = iter(word.text)
        runs = [c for i, c in enumerate(spelled) if i == 0 or c != spelled[i - 1]]
        assert runs and all(c in order for c in runs), (word, spelled)


def test_dense_labels_of_a_scene_name_its_objects_and_its_plate():
    scene = make_scene(9, "train", 0)
    _, _, word, colour, shape = dense_labels.scene_labels(scene)
    named = {
        (dense_labels.COLOUR_NAMES[c - 1], dense_labels.SHAPE_NAMES[s - 1])
        for c, s in zip(colour, shape, strict=True)
        if 0 < s < IGNORED
    }
    assert named == {(item.colour, item.shape) for item in scene.objects}
    assert len(PRINTED) + 1 in word


def test_removal_is_uniform_in_half_of_the_steps_and_of_many_sizes():
    counts, sizes = torch.zeros(NUM_VISUAL_TOKENS), []
    for step in range(600):
        kept = draw_removal(np.random.default_rng([0, step]), 4)
        sizes.append(kept.shape[1])
        assert bool((kept.diff(dim=1) > 0).all())
        counts += torch.bincount(kept.flatten(), minlength=NUM_VISUAL_TOKENS)
    whole = sum(size == NUM_VISUAL_TOKENS for size in sizes) / len(sizes)
    assert 0.42 < whole < 0.58 and min(sizes) < 20 and len(set(sizes)) > 50
    assert float(counts.std() / counts.mean()) < 0.1


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    train_mixed_vlm(tmp_path / "a", tmp_path / "wa", TINY)
    real, calls = stage.Stage.update, []

    def update_until_killed(self, loss):
        calls.append(self)
        if len(calls) in (2, 5, 7):
            raise KeyboardInterrupt
        real(self, loss)

    monkeypatch.setattr(stage.Stage, "update", update_until_killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            train_mixed_vlm(tmp_path / "b", tmp_path / "wb", TINY)
    train_mixed_vlm(tmp_path / "b", tmp_path / "wb", TINY)
    for variant in VARIANTS:
        weights = [(tmp_path / n / variant / "model.safetensors").read_bytes() for n in "ab"]
        assert weights[0] == weights[1]


def test_a_work_folder_of_other_data_is_refused(tmp_path):
    (tmp_path / "recipe.txt").write_text("other")
    with pytest.raises(ConfigError, match="was made with other settings"):
        train_mixed_vlm(tmp_path / "out", tmp_path, TINY)


def test_a_setting_of_another_recipe_is_refused(tmp_path, capsys):
    wrong = ["reference", "train", "--recipe", "siglip-qwen2", "--uneven-steps", "3"]
    assert cli.main([*wrong, "--work", str(tmp_path)]) != 0
    assert "uneven_steps=3 is not a setting of recipe=siglip-qwen2" in capsys.readouterr().err


def test_the_measure_of_the_second_recipe_needs_a_folder(capsys):
    assert cli.main(["reference", "measure", "--recipe", "siglip-qwen2"]) != 0
    assert "model=reference was made by recipe=clip-llama" in capsys.readouterr().err
