"""The frozen backbone: the untouched model at K = N, masking at K < N, blindness at K = 0."""

import pytest
import torch

from autoselect.config import ConfigError
from autoselect.reference.scenes import make_scene
from autoselect.reference.vlm import build_model, build_processor, save_vlm
from autoselect.vlm.backbone import FrozenVLM

QUESTIONS = ["is there a red circle ?", "what does the sign say ?", "how many hearts are there ?"]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    save_vlm(build_model(3), folder)
    return FrozenVLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def images():
    return [make_scene(0, "train", index).image for index in range(len(QUESTIONS))]


def random_positions(kept: int, rows: int = 3, seed: int = 0) -> torch.Tensor:
    keys = torch.rand(rows, 144, generator=torch.Generator().manual_seed(seed))
    return keys.argsort(1)[:, :kept].sort(1).values


def take(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def test_all_tokens_kept_is_the_untouched_vlm_bit_for_bit(vlm, images):
    inputs = vlm.prepare(images, QUESTIONS)
    with torch.no_grad():
        untouched = vlm.model.model(**inputs).last_hidden_state
    prefix = vlm.prefix(vlm.prompt(QUESTIONS), vlm.encode_images(images).tokens)
    with torch.no_grad():
        ours = vlm.model.model(**prefix).last_hidden_state
    real = inputs["attention_mask"].bool()
    assert torch.equal(ours[real], untouched[real])


def test_all_tokens_kept_generates_what_the_untouched_vlm_generates(vlm, images):
    inputs = vlm.prepare(images, QUESTIONS)
    stock = vlm.model.generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)
    new = stock[:, inputs["input_ids"].shape[1] :]
    expected = vlm.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    prefix = vlm.prefix(vlm.prompt(QUESTIONS), vlm.encode_images(images).tokens)
    assert vlm.generate(prefix, 5) == [text.strip() for text in expected]


@pytest.mark.parametrize("kept", [1, 8, 143])
def test_pruning_equals_masking(vlm, images, kept):
    tokens = vlm.encode_images(images).tokens
    prompt = vlm.prompt(QUESTIONS)
    positions = random_positions(kept)
    pruned = vlm.prefill(vlm.prefix(prompt, take(tokens, positions), positions))
    full = vlm.prefix(prompt, tokens)
    visible = torch.zeros(3, 144, dtype=torch.long).scatter(1, positions, 1)
    mask = prompt["attention_mask"].clone()
    mask[prompt["input_ids"] == vlm.image_token_id] = visible.flatten()
    masked = vlm.prefill({**full, "attention_mask": mask})
    torch.testing.assert_close(pruned, masked, rtol=0, atol=1e-5)


def test_a_batch_equals_its_rows_one_by_one_under_padding(vlm, images):
    positions = random_positions(12)
    tokens = take(vlm.encode_images(images).tokens, positions)
    together = vlm.prefill(vlm.prefix(vlm.prompt(QUESTIONS), tokens, positions))
    for row, question in enumerate(QUESTIONS):
        alone = vlm.prefix(vlm.prompt([question]), tokens[row : row + 1], positions[row : row + 1])
        torch.testing.assert_close(vlm.prefill(alone)[0], together[row], rtol=0, atol=1e-5)


def test_kept_tokens_keep_their_original_positions(vlm, images):
    positions = random_positions(5)
    prefix = vlm.prefix(
        vlm.prompt(QUESTIONS), take(vlm.encode_images(images).tokens, positions), positions
    )
    prompt = vlm.prompt(QUESTIONS)
    for row in range(3):
        first = int((prompt["input_ids"][row] == vlm.image_token_id).int().argmax())
        padding = int((prompt["attention_mask"][row] == 0).sum())
        ours = prefix["position_ids"][row, first : first + 5]
        assert torch.equal(ours, positions[row] + first - padding)


def test_no_token_kept_does_not_depend_on_the_image(vlm, images):
    prompt = vlm.prompt(QUESTIONS)
    nothing = torch.zeros(3, 0, dtype=torch.long)
    answers = [
        vlm.prefill(vlm.prefix(prompt, vlm.encode_images(some).tokens[:, :0], nothing))
        for some in (images, images[::-1])
    ]
    assert torch.equal(*answers)


def test_class_attention_is_a_distribution_over_patches(vlm, images):
    visual = vlm.encode_images(images, class_attention=True)
    assert visual.class_attention.shape == (3, 144)
    assert bool((visual.class_attention > 0).all())
    assert bool((visual.class_attention.sum(1) < 1).all())
    assert visual.grid == (12, 12)


def test_a_frozen_vlm_has_no_trainable_parameter_and_stays_in_eval_mode(vlm):
    assert not vlm.model.training
    assert not any(p.requires_grad for p in vlm.model.parameters())


def test_paths_that_are_no_vlm_are_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        FrozenVLM.from_pretrained(tmp_path)
    text_model = tmp_path / "text"
    build_model().model.language_model.config.save_pretrained(text_model)
    with pytest.raises(ConfigError, match="no vision-language model"):
        FrozenVLM.from_pretrained(text_model)
    broken = tmp_path / "broken"
    save_vlm(build_model(), broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="incomplete"):
        FrozenVLM.from_pretrained(broken)


def test_the_processor_survives_a_round_trip(tmp_path, vlm):
    build_processor().save_pretrained(tmp_path)
    text = "what does the sign say ?<assistant>K7</s>"
    assert vlm.processor.tokenizer.decode(
        vlm.processor.tokenizer(text)["input_ids"], skip_special_tokens=True
    ).endswith("K7")
