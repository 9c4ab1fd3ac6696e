"""Training of the reference VLM: packed questions equal separate prompts; resuming is exact."""

import numpy as np
import pytest
import torch
from torch import nn

from autoselect.config import ConfigError
from autoselect.reference import stage, train_language
from autoselect.reference.corpus import IGNORED, build_corpus, patch_labels
from autoselect.reference.questions import FAMILIES, ask
from autoselect.reference.recipe import ReferenceTraining
from autoselect.reference.scenes import COLOURS, SHAPES, make_scene, scene_rng
from autoselect.reference.train_language import answer_logits, draw_kept
from autoselect.reference.train_vlm import train_reference_vlm
from autoselect.reference.vlm import build_model, build_processor
from autoselect.vlm.backbone import FrozenVLM
from tests.vlm.stock import asked_inputs, last_logits

TINY = ReferenceTraining(
    images=12,
    tower_steps=2,
    language_steps=2,
    uneven_steps=1,
    visible_steps=1,
    batch_size=4,
    save_every=1,
    seed=9,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("corpus"), 6, 9, workers=1)


def test_packed_questions_equal_prompts_of_their_own(corpus):
    """The first answer token of each question has the logits of a prompt with that question."""
    model = build_model(2).eval()
    vlm = FrozenVLM(model, build_processor(), "tiny")
    scene = make_scene(9, "train", 0)
    kept = draw_kept(np.random.default_rng(0), 1)
    while kept.shape[1] in (0, 144):
        kept = draw_kept(np.random.default_rng(int(kept.shape[1]) + 1), 1)
    pixels = vlm.pixel_inputs([scene.image])["pixel_values"]
    with torch.no_grad():
        hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        tokens = torch.from_numpy(corpus.tokens[:1]).long()
        starts = torch.from_numpy(corpus.starts[:1]).long()
        logits, targets, rows = answer_logits(model, hidden[:, 1:], kept, tokens, starts)
    first = [int((rows == row).nonzero()[0]) for row in rows.unique()]
    texts = vlm.processor.tokenizer.batch_decode(
        [ids[: int(s)] for ids, s in zip(tokens[0], starts[0], strict=True) if s < 16],
        skip_special_tokens=True,
    )
    for place, text in zip(first, texts, strict=True):
        alone = last_logits(vlm, asked_inputs(vlm, [[scene.image]], [text]), list(kept))
        torch.testing.assert_close(alone[0], logits[place], rtol=1e-4, atol=1e-4)
        assert int(targets[place]) > 0


def test_patch_labels_name_what_covers_the_centre_of_each_object():
    for index in range(20):
        scene = make_scene(9, "train", index)
        labels = patch_labels(scene).reshape(4, 12, 12)
        for item in scene.objects:
            column, row = (int(v // 8) for v in item.centre)
            assert labels[0, row, column] == 1 + SHAPES.index(item.shape)
            assert labels[1, row, column] == 1 + list(COLOURS).index(item.colour)
            assert labels[3, row, column] == 1
        assert labels[3].sum() == len(scene.objects) + 2
        assert set(np.unique(labels[0])) <= {0, IGNORED, *range(1, 6)}


def test_removed_tokens_are_uniformly_random_and_sizes_vary():
    counts = torch.zeros(144)
    sizes = set()
    for step in range(400):
        kept = draw_kept(np.random.default_rng([0, 11, step]), 4)
        sizes.add(kept.shape[1])
        assert bool((kept.diff(dim=1) > 0).all())
        counts += torch.bincount(kept.flatten(), minlength=144)
    assert sizes == set(train_language.KEPT_COUNTS)
    assert float(counts.std() / counts.mean()) < 0.1


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    train_reference_vlm(tmp_path / "a", tmp_path / "wa", TINY)
    real, calls = stage.Stage.update, []

    def update_until_killed(self, loss):
        calls.append(self)
        if len(calls) in (2, 5):
            raise KeyboardInterrupt
        real(self, loss)

    monkeypatch.setattr(stage.Stage, "update", update_until_killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_reference_vlm(tmp_path / "b", tmp_path / "wb", TINY)
    train_reference_vlm(tmp_path / "b", tmp_path / "wb", TINY)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    FrozenVLM.from_pretrained(tmp_path / "a")


def test_a_state_with_a_single_optimizer_resumes(tmp_path):
    """Older versions saved one optimiser under another name."""
    module = nn.Linear(2, 2)
    first = stage.Stage("one", module, 3, 0.1, tmp_path, 1)
    first.update(module(torch.ones(1, 2)).sum())
    state = torch.load(first.path, weights_only=True)
    (state["optimizer"],) = state.pop("optimizers")
    torch.save(state, first.path)
    again = stage.Stage("one", nn.Linear(2, 2), 3, 0.1, tmp_path, 1)
    assert again.step == 1
    torch.testing.assert_close(again.module.weight, module.weight, rtol=0, atol=0)
    saved = again.optimizers[0].state_dict()["state"]
    assert saved.keys() == state["optimizer"]["state"].keys() and saved


def test_a_work_folder_of_another_recipe_is_refused(tmp_path):
    (tmp_path / "recipe.txt").write_text("other")
    with pytest.raises(ConfigError, match="was made with other settings"):
        train_reference_vlm(tmp_path / "out", tmp_path, TINY)


def test_questions_fit_their_slots():
    build = [ask(scene_rng(1, "train", i), make_scene(0, "train", i), FAMILIES) for i in range(30)]
    tokenizer = build_processor().tokenizer
    longest = max(
        len(tokenizer(f"{q.question}<assistant>{q.answer}</s>")["input_ids"])
        for questions in build
        for q in questions
    )
    assert longest <= 16
