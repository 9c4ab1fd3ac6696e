"""The public route (processor, `attach`, `generate`) gives the answers of the evaluator."""

import io
import json

import pytest
import torch
from PIL import Image

from autoselect import read_image
from autoselect.config import ConfigError, ScorerConfig
from autoselect.data.shards import ShardWriter
from autoselect.evaluation.answers.answering import Plan, answer_part
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.methods.registry import METHODS, selector_method
from autoselect.evaluation.samples import EvaluationSet
from autoselect.lmms.engine import PrunedVLM, parse_budget
from autoselect.lmms.local_task import process_results, visual, write_local_task
from autoselect.lmms.settings import BASELINES
from autoselect.method.scorer import Scorer
from autoselect.pruning.selector import Selector
from autoselect.reference.resources import MODEL_FOLDER
from autoselect.vlm import FrozenVLM
from tests.data.shard_samples import make_image, sideways
from tests.lmms.hub_folder import WIDTH, write_next_folder

GREEDY = {"max_new_tokens": 4, "do_sample": False}
BUDGET = 8


@pytest.fixture(scope="module")
def samples(reference):
    return list(EvaluationSet.open(str(reference / "test-*.tar")))


@pytest.fixture(scope="module")
def expected(reference, samples):
    """Return the answers of the evaluator: column -> one text per question."""
    vlm = FrozenVLM.from_pretrained(MODEL_FOLDER)
    selector = Selector.from_pretrained(reference / "selector")
    methods = (selector_method(selector), METHODS["divprune"])
    replies = answer_part(
        AskedVLM(vlm), samples, Plan(methods=methods, budgets=(BUDGET,), num_tokens=144)
    )
    return {name: [one.text for image in rows for one in image] for name, rows in replies.items()}


def public_answers(engine: PrunedVLM, samples, batch: int) -> list[str]:
    asked = [([sample.image], question) for sample in samples for question in sample.questions]
    texts = []
    for start in range(0, len(asked), batch):
        images, questions = zip(*asked[start : start + batch], strict=True)
        texts += engine.answer(images, questions, GREEDY)
    return texts


@pytest.mark.parametrize("batch", [1, 4])
def test_both_routes_give_the_same_answers(reference, samples, expected, batch):
    model = str(MODEL_FOLDER)
    selector = str(reference / "selector")
    full = public_answers(PrunedVLM(model), samples, batch)
    assert full == expected["full@0#0"]
    pruned = public_answers(PrunedVLM(model, selector, BUDGET), samples, batch)
    assert pruned == expected[f"autoselect@{BUDGET}#0"]
    assert pruned != full
    spread = public_answers(PrunedVLM(model, None, BUDGET, "divprune"), samples, batch)
    assert spread == expected[f"divprune@{BUDGET}#0"]


@pytest.mark.parametrize("budget", ["full", 9, "30%"])
def test_images_of_many_sizes_are_answered_alike_in_every_batch(tmp_path, budget):
    write_next_folder(tmp_path / "model")
    torch.manual_seed(1)
    Selector(Scorer(WIDTH, ScorerConfig(16, 1, 2))).save_pretrained(tmp_path / "selector")
    engine = PrunedVLM(str(tmp_path / "model"), str(tmp_path / "selector"), budget)
    rng = torch.Generator().manual_seed(0)
    images = []
    for size in ((60, 60), (120, 50), (40, 130), (90, 100)):
        values = torch.randint(0, 256, (size[1], size[0], 3), generator=rng, dtype=torch.uint8)
        images.append([Image.fromarray(values.numpy())])
    images.append([images[0][0], images[1][0]])
    questions = ["What?", "Which shade is it?", "How many?", "Is it?", "Which is which?"]
    together = engine.answer(images, questions, GREEDY)
    if budget == 9:
        kept = [len(image.kept) for image in engine.vlm.model.autoselect.last.images]
        assert kept == [9] * 6
    alone = [
        engine.answer([own], [text], GREEDY)[0] for own, text in zip(images, questions, strict=True)
    ]
    assert together == alone
    assert len(set(alone)) > 1


def test_rows_without_an_image_stand_beside_others(reference, samples):
    engine = PrunedVLM(str(MODEL_FOLDER), str(reference / "selector"), "11%")
    image, question = samples[0].image, samples[0].questions[0]
    alone = [engine.answer([[image]], [question], GREEDY), engine.answer([[]], [question], GREEDY)]
    together = engine.answer([[], [image]], [question, question], GREEDY)
    assert together == [alone[1][0], alone[0][0]]


def test_likelihood_agrees_with_what_is_generated(reference, samples):
    engine = PrunedVLM(str(MODEL_FOLDER), str(reference / "selector"), BUDGET)
    image, question = samples[0].image, samples[0].questions[0]
    (text,) = engine.answer([[image]], [question], GREEDY)
    likely, greedy = engine.likelihood([image], question, text)
    other, not_greedy = engine.likelihood([image], question, "7" if text != "7" else "3")
    assert greedy and not not_greedy
    assert other < likely <= 0


@pytest.mark.parametrize("method", BASELINES)
def test_every_baseline_answers(method, samples):
    engine = PrunedVLM(str(MODEL_FOLDER), budget=BUDGET, method=method)
    pairs = [(sample.image, sample.questions[0]) for sample in samples[:2]]
    images, questions = zip(*pairs, strict=True)
    texts = engine.answer([[image] for image in images], questions, GREEDY)
    alone = [engine.answer([[image]], [q], GREEDY)[0] for image, q in pairs]
    assert texts == alone and all(texts)


def test_budgets_are_read_as_users_write_them():
    assert [parse_budget(v) for v in ("full", "64", 64, "0.11", 0.11, "11%")] == [
        *(None, 64, 64),
        *(0.11, 0.11, pytest.approx(0.11)),
    ]
    with pytest.raises(ConfigError, match="must be full"):
        parse_budget("many")


def test_what_does_not_fit_is_refused(reference):
    with pytest.raises(ConfigError, match="needs a selector"):
        PrunedVLM(str(MODEL_FOLDER), budget=8)
    with pytest.raises(ConfigError, match="is unknown here; choose autoselect, "):
        PrunedVLM(str(MODEL_FOLDER), budget=8, method="oracle")
    with pytest.raises(ConfigError, match="dtype='half' must be one of"):
        PrunedVLM(str(MODEL_FOLDER), dtype="half")


def test_a_local_task_holds_every_question(reference, samples, tmp_path):
    write_local_task("mine", str(reference / "test-*.tar"), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text().splitlines()]
    assert len(lines) == sum(len(sample.questions) for sample in samples)
    assert visual(lines[0])[0].tobytes() == samples[0].image.tobytes()
    assert process_results(lines[0], [lines[0]["answers"][0]]) == {lines[0]["task"]: 1.0}
    assert process_results(lines[0], ["nonsense"]) == {lines[0]["task"]: 0.0}
    assert "doc_to_text: !function utils.text" in (tmp_path / "mine.yaml").read_text()


def test_a_local_task_shows_all_images_as_they_are_evaluated(tmp_path):
    stored = [sideways(), make_image(4, (40, 24))]
    turns = [
        {"from": "human", "value": "<image> or <image>?"},
        {"from": "gpt", "value": "the first"},
    ]
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write("0", {"conversations": turns}, stored)
    write_local_task("mine", str(tmp_path / "shards" / "*.tar"), tmp_path / "task")
    document = json.loads((tmp_path / "task" / "mine.jsonl").read_text())
    (sample,) = EvaluationSet.open(str(tmp_path / "shards" / "*.tar"))
    shown = visual(document)
    assert [one.tobytes() for one in shown] == [one.tobytes() for one in sample.images]
    assert shown[0].tobytes() == read_image(stored[0]).tobytes()
    assert document["question"] == sample.asked(0) == turns[0]["value"]
    written = sorted((tmp_path / "task" / "images").iterdir())
    assert sorted(path.read_bytes() for path in written) == sorted(stored)
    assert visual(document | {"image_path": document["image_path"][0]})[0].tobytes() == (
        shown[0].tobytes()
    )


def test_images_are_answered_about_as_they_are_seen():
    """lmms-eval hands over PIL images as they are stored."""
    engine = PrunedVLM(str(MODEL_FOLDER))
    image = Image.open(io.BytesIO(sideways()))
    asked = ("What colour is the circle?", " red")
    seen = engine.likelihood([image], *asked)
    assert seen == engine.likelihood([read_image(image)], *asked)
    assert seen != engine.likelihood([image.convert("RGB")], *asked)
