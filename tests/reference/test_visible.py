"""Rewritten answers: the truth if all tokens are kept, the visible objects if some are removed."""

import numpy as np
import pytest

from autoselect.reference.corpus import encode_slots, patch_labels
from autoselect.reference.questions import FAMILIES, ask
from autoselect.reference.scenes import make_scene, scene_rng
from autoselect.reference.train_language import segment_density
from autoselect.reference.visible import VisibleAnswers, objects_left, segments
from autoselect.reference.vlm import build_tokenizer

EVERYTHING = np.arange(144)


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(3, "train", index) for index in range(40)]


def slots_of(scene, index):
    tokenizer = build_tokenizer()
    questions = ask(scene_rng(4, "train", index), scene, FAMILIES)
    tokens, starts = encode_slots(questions, tokenizer)
    return questions, tokens[None], starts[None], tokenizer


def test_with_every_token_every_object_is_left(scenes):
    for scene in scenes:
        left = objects_left(patch_labels(scene), EVERYTHING)
        assert sorted(left) == sorted((o.shape, o.colour) for o in scene.objects)


def test_an_object_is_left_exactly_when_one_of_its_patches_is(scenes):
    for scene in scenes:
        labels = patch_labels(scene)
        for item in scene.objects:
            column, row = (int(v // 8) for v in item.centre)
            centre = np.array([row * 12 + column])
            assert objects_left(labels, centre) == [(item.shape, item.colour)]
        background = np.flatnonzero(labels[0] == 0)
        assert objects_left(labels, background) == []


def test_with_every_token_no_answer_changes(scenes):
    for index, scene in enumerate(scenes):
        _, tokens, starts, tokenizer = slots_of(scene, index)
        answers = VisibleAnswers(tokenizer)
        labels = patch_labels(scene)[None]
        rewritten = answers.rewrite(tokens, starts, labels, EVERYTHING[None])
        assert np.array_equal(rewritten, tokens)


def test_without_objects_nothing_is_there_and_the_count_is_zero(scenes):
    changed = 0
    for index, scene in enumerate(scenes):
        questions, tokens, starts, tokenizer = slots_of(scene, index)
        labels = patch_labels(scene)
        background = np.flatnonzero(labels[0] == 0)[None]
        rewritten = VisibleAnswers(tokenizer).rewrite(tokens, starts, labels[None], background)
        for slot, start, question in zip(rewritten[0], starts[0], questions, strict=False):
            answer = tokenizer.convert_ids_to_tokens(int(slot[start]))
            told = {"existence": "no", "counting": "0"}.get(question.family)
            assert answer == (told or tokenizer.tokenize(question.answer)[0])
            changed += told is not None and told != question.answer
    assert changed > 20


def test_one_object_less_is_one_less(scenes):
    for scene in scenes:
        labels = patch_labels(scene)
        item = scene.objects[0]
        near = (np.abs(np.arange(12) * 8 + 4 - item.centre[0])[None, :] < 15) & (
            np.abs(np.arange(12) * 8 + 4 - item.centre[1])[:, None] < 15
        )
        rest = np.flatnonzero(~near.flatten())
        if not any(o is not item and _touches(o, near) for o in scene.objects):
            assert len(objects_left(labels, rest)) == len(scene.objects) - 1


def _touches(item, near):
    column, row = (int(v // 8) for v in item.centre)
    return bool(near[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].any())


def test_without_any_token_the_answers_stay(scenes):
    _, tokens, starts, tokenizer = slots_of(scenes[0], 0)
    nothing = np.zeros((1, 0), dtype=int)
    labels = patch_labels(scenes[0])[None]
    rewritten = VisibleAnswers(tokenizer).rewrite(tokens, starts, labels, nothing)
    assert np.array_equal(rewritten, tokens)


def test_every_thing_is_a_segment_and_the_rest_is_background(scenes):
    for scene in scenes:
        labels = patch_labels(scene)
        things = segments(labels)
        assert set(things) == set(range(len(scene.objects) + 3))
        assert np.array_equal(things == 0, (labels[0] == 0) & (labels[2] == 0))
        places = [o.centre for o in scene.objects]
        places += [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in scene.plate.character_boxes]
        at = [things[int(y // 8) * 12 + int(x // 8)] for x, y in places]
        assert len(set(at)) == len(places) and 0 not in at


def test_things_and_background_keep_tokens_alike_on_average(scenes):
    labels = np.stack([patch_labels(scene) for scene in scenes])
    covered = (labels[:, 0] > 0) | (labels[:, 2] > 0)
    rng = np.random.default_rng(0)
    zero = np.zeros((len(scenes), 144))
    draws = np.stack([segment_density(rng, zero, labels) for _ in range(300)])
    assert abs(draws[:, covered].mean()) < 0.05 and abs(draws[:, ~covered].mean()) < 0.05
    flat = (draws == 0).all(axis=2).mean()
    assert 0.45 < flat < 0.55
    one_thing = draws[0][0][segments(labels[0]) == 1]
    assert np.ptp(one_thing) == 0
