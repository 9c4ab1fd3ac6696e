"""Reference scenes and questions: deterministic, balanced, and right by construction."""

from collections import Counter

import numpy as np
import pytest

from autoselect.reference.clutter import TEST_PHOTOS, TRAIN_PHOTOS
from autoselect.reference.questions import FAMILIES, ask
from autoselect.reference.scenes import (
    COLOURS,
    IMAGE_SIZE,
    PLATE_CHARACTERS,
    SHAPES,
    make_scene,
    scene_rng,
)
from autoselect.reference.vlm import GRID, NUM_VISUAL_TOKENS, build_tokenizer

SCENES = 250


@pytest.fixture(scope="module")
def asked():
    scenes = [make_scene(4, "train", index) for index in range(SCENES)]
    return [
        (scene, ask(scene_rng(5, "train", index), scene, FAMILIES))
        for index, scene in enumerate(scenes)
    ]


def test_images_have_at_least_twelve_by_twelve_patches():
    assert GRID >= 12
    assert NUM_VISUAL_TOKENS == GRID * GRID


def test_a_scene_is_a_pure_function_of_seed_split_and_index():
    first, again = make_scene(1, "val", 3), make_scene(1, "val", 3)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.objects, first.plate) == (again.objects, again.plate)
    others = [make_scene(2, "val", 3), make_scene(1, "test", 3), make_scene(1, "val", 4)]
    assert all(other.image.tobytes() != first.image.tobytes() for other in others)


def test_test_photographs_are_never_trained_on():
    assert not set(TRAIN_PHOTOS) & set(TEST_PHOTOS)


def test_objects_lie_in_the_image_and_do_not_overlap(asked):
    for scene, _ in asked:
        boxes = [item.box for item in scene.objects] + [scene.plate.box]
        canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=int)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= IMAGE_SIZE and 0 <= top < bottom <= IMAGE_SIZE
            canvas[top:bottom, left:right] += 1
        assert canvas.max() == 1


def test_an_object_shows_its_colour_at_its_centre(asked):
    for scene, _ in asked:
        pixels = np.asarray(scene.image).astype(int)
        for item in scene.objects:
            x, y = (int(v) for v in item.centre)
            seen = pixels[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(0)
            nearest = min(COLOURS, key=lambda name: np.abs(seen - COLOURS[name]).sum())
            assert nearest == item.colour


def count(scene, noun: str) -> int:
    word = noun.removesuffix("s") if noun.removesuffix("s") in SHAPES else noun.split()[0]
    return sum(word in (item.shape, item.colour) for item in scene.objects)


def test_answers_are_right(asked):
    """Answer the question again from the scene alone, in another way than it was made."""
    for scene, questions in asked:
        names = [f"{item.colour} {item.shape}" for item in scene.objects]
        places = dict(zip(names, scene.objects, strict=True))
        for question in questions:
            words = question.question.removesuffix(" ?")
            if question.family == "existence":
                right = "yes" if words.removeprefix("is there a ") in names else "no"
            elif question.family == "text":
                right = scene.plate.text
            elif words == "how many objects are there":
                right = str(len(scene.objects))
            elif question.family == "counting":
                noun = words.removeprefix("how many ").removesuffix(" are there")
                right = str(count(scene, noun))
            elif words.startswith("what color is the "):
                right = next(i.colour for i in scene.objects if i.shape == words.split()[-1])
            elif words.startswith("what shape is the "):
                right = next(i.shape for i in scene.objects if i.colour == words.split()[4])
            else:
                subject, _, target = words.removeprefix("is the ").partition(" or ")
                name = " ".join(subject.split()[:2])
                target = target.split(" the ")[1]
                box = scene.plate.box if target == "sign" else places[target].box
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                own = places[name].centre
                horizontal = "left" in words
                low, high = ("left", "right") if horizontal else ("above", "below")
                right = low if (own[0] < x if horizontal else own[1] < y) else high
            assert question.answer == right, question


def test_answers_are_balanced(asked):
    answers = {family: Counter() for family in FAMILIES}
    for _, questions in asked:
        for question in questions:
            answers[question.family][question.answer] += 1
    share = {family: max(counts.values()) / counts.total() for family, counts in answers.items()}
    assert share["existence"] < 0.6
    assert share["attribute"] < 0.25
    assert share["counting"] < 0.4
    assert share["relation"] < 0.4
    assert share["text"] < 0.05
    assert all(counts.total() > 0.8 * SCENES for counts in answers.values())


def test_the_tokenizer_knows_every_word_and_reads_plates_back(asked):
    tokenizer = build_tokenizer()
    for _, questions in asked:
        for question in questions:
            ids = tokenizer(f"{question.question}<assistant>{question.answer}</s>")["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(tokenizer(question.answer)["input_ids"]) == question.answer
    assert len({tokenizer(c)["input_ids"][0] for c in PLATE_CHARACTERS}) == len(PLATE_CHARACTERS)
