"""Reference pages: the same for the same seed, balanced, and different in the test split."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from autoselect.data.shards import ShardSet
from autoselect.reference.documents.canvas import PAGE_SIZE
from autoselect.reference.documents.distractors import DISTRACTORS
from autoselect.reference.documents.fonts import TEST_FONTS, TRAIN_FONTS, Face
from autoselect.reference.documents.lexicon import DIRECTIONS, PRINTED, TEXT_COLOURS
from autoselect.reference.documents.pages import KINDS, PAGE_FAMILIES, ask_page, make_page
from autoselect.reference.documents.signs import PANEL_COLOURS
from autoselect.reference.documents.style import RULES
from autoselect.reference.recipe import ReferenceData
from autoselect.reference.scenes import COLOURS
from autoselect.reference.shards import render_shards
from autoselect.reference.siglip_qwen2.vlm import GRID, build_tokenizer

PAGES = 360
COLOUR_NAMES = {*COLOURS, *TEXT_COLOURS, *PANEL_COLOURS}


@pytest.fixture(scope="module")
def pages():
    return [make_page(4, "train", index) for index in range(PAGES)]


@pytest.fixture(scope="module")
def held_out():
    return [make_page(4, "test", index) for index in range(60)]


def test_images_have_at_least_fourteen_by_fourteen_patches():
    assert GRID >= 14


def test_a_page_depends_on_seed_split_and_index_only():
    first, again = make_page(1, "val", 3), make_page(1, "val", 3)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.questions == again.questions and first.words == again.words
    others = [make_page(2, "val", 3), make_page(1, "test", 3), make_page(1, "val", 9)]
    assert all(other.image.tobytes() != first.image.tobytes() for other in others)


def test_fonts_rules_and_distractors_of_the_test_split_are_its_own():
    assert not set(TRAIN_FONTS) & set(TEST_FONTS)
    assert not set(RULES["train"]) & set(RULES["test"])
    assert not set(DISTRACTORS["train"]) & set(DISTRACTORS["test"])


def test_every_font_has_its_own_picture_of_every_character():
    for name in (*TRAIN_FONTS, *TEST_FONTS):
        face = Face(name, 20.0).loaded
        shapes = {bytes(face.getmask(c)) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"}
        assert len(shapes) == 36, name


def test_pages_are_dense_and_sparse(pages):
    counts = [len(page.words) for page in pages]
    assert min(counts) <= 4 and max(counts) >= 20


def test_boxes_hold_the_answer(pages, held_out):
    """The answer is read from the words and marks inside the boxes of a question."""
    for page in (*pages, *held_out):
        for question in page.questions:
            inside = set(question.boxes)
            texts = {word.text for word in page.words if word.box in inside}
            colours = {m.colour for m in page.marks if m.box in inside}
            colours |= {word.colour for word in page.words if word.box in inside}
            if question.answer in COLOUR_NAMES | set(DIRECTIONS):
                held = {question.answer} <= colours or question.answer.upper() in texts
            else:
                held = set(question.answer.upper().split()) <= texts
            if question.question.startswith("what color is the sign"):
                held = any(m.colour == question.answer for m in page.marks)
            assert held, question


def test_boxes_lie_on_the_page_and_printed_words_stand_out(pages, held_out):
    for page in (*pages, *held_out):
        pixels = np.asarray(page.image).astype(float).mean(axis=2)
        for left, top, right, bottom in {word.box for word in page.words}:
            assert 0 <= left < right <= PAGE_SIZE and 0 <= top < bottom <= PAGE_SIZE
            assert np.ptp(pixels[top:bottom, left:right]) > 40
        for question in page.questions:
            assert question.boxes


def test_a_question_has_one_answer_on_a_page(pages):
    for page in pages:
        answers = defaultdict(set)
        for question in page.questions:
            answers[question.question].add(question.answer)
        assert all(len(given) == 1 for given in answers.values()), answers


def template(question: str) -> str:
    """Return a question with a star for every word that depends on the page."""
    words = question.split()
    return " ".join(
        "*" if w in PRINTED or not w.islower() or w in COLOUR_NAMES else w for w in words
    )


def test_the_commonest_answer_to_each_kind_of_question_is_rare(pages):
    """The best guess from the question alone is the commonest answer to its kind."""
    answers: dict[str, dict[str, Counter]] = {name: defaultdict(Counter) for name in PAGE_FAMILIES}
    for page in pages:
        for question in ask_page(page, 4):
            answers[question.family][template(question.question)][question.answer] += 1
    for family, limit in (("document", 0.2), ("chart", 0.25), ("ocr", 0.25), ("sign", 0.35)):
        counts = answers[family].values()
        blind = sum(max(c.values()) for c in counts) / sum(c.total() for c in counts)
        assert blind < limit, (family, blind)
    assert all(answers[family] for family in PAGE_FAMILIES)


def test_answers_have_one_to_five_tokens_and_are_read_back(pages):
    tokenizer = build_tokenizer()
    lengths = Counter()
    for page in pages:
        for question in page.questions:
            ids = tokenizer(f"{question.question}<assistant>{question.answer}</s>")["input_ids"]
            assert tokenizer.unk_token_id not in ids and len(ids) <= 16
            answer = tokenizer(question.answer)["input_ids"]
            assert tokenizer.decode(answer) == question.answer
            lengths[len(answer)] += 1
    assert set(lengths) == {1, 2, 3, 4, 5}
    assert lengths[1] < 0.7 * lengths.total()


def test_every_kind_of_page_comes_equally_often(pages):
    assert set(Counter(page.kind for page in pages).values()) == {PAGES // len(KINDS)}


def test_page_shards_hold_tasks_answers_and_boxes(tmp_path):
    render_shards(tmp_path, ReferenceData(train=6, val=6, test=6), workers=1, domain="pages")
    data = ShardSet.open(str(tmp_path / "test-*.tar"))
    tasks = set()
    for index in range(len(data)):
        sample = data[index]
        rounds = len(sample.record["conversations"]) // 2
        assert sample.pictures[0].size == (PAGE_SIZE, PAGE_SIZE)
        for field in ("tasks", "answers", "boxes"):
            assert len(sample.record[field]) == rounds <= 4
        tasks |= set(sample.record["tasks"])
    assert tasks == set(PAGE_FAMILIES)
