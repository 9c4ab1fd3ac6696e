"""Evaluation of other families, of several images, and against an attached model."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from autoselect.cli import main as cli
from autoselect.config import ConfigError, ScorerConfig
from autoselect.data.shards import ShardWriter
from autoselect.evaluation import run
from autoselect.evaluation.analyses import command
from autoselect.evaluation.answers.answering import Plan, answer_part
from autoselect.evaluation.asking.asked_vlm import AskedVLM
from autoselect.evaluation.asking.likelihood import continuation_log_likelihood
from autoselect.evaluation.latency.calls import Prompt, full_calls, pruned_calls
from autoselect.evaluation.loading import load_pair
from autoselect.evaluation.methods.choice import choose
from autoselect.evaluation.methods.registry import METHODS, selector_method
from autoselect.evaluation.report.check import check_report
from autoselect.evaluation.run import evaluate
from autoselect.evaluation.samples import EvaluationSet
from autoselect.evaluation.settings import EvalSettings
from autoselect.method.scorer import Scorer
from autoselect.pruning.attachment import attach, detach
from autoselect.pruning.selector import Selector
from autoselect.reference.jpeg import to_jpeg
from autoselect.reference.scenes import make_scene
from autoselect.vlm import FrozenVLM
from tests.vlm import tiny_processors
from tests.vlm.stock import model_of
from tests.vlm.tiny_prompts import WIDTH


def test_it_gives_the_answers_of_an_attached_model(model_folder, selector_folder, shards):
    """What is measured is what users call."""
    vlm, selector = load_pair(model_folder, selector_folder, "cpu")
    selector.diversity = 0.4
    samples = list(EvaluationSet.open(shards))
    plan = Plan((selector_method(selector),), (8, 40), 144, rows_per_batch=7, max_new_tokens=3)
    asked = AskedVLM(vlm)
    found = answer_part(asked, samples, plan)
    assert getattr(vlm.model, "autoselect", None) is None, "the model is what it was"
    for budget in (8, 40):
        attach(vlm.model, selector, budget)
        for sample, texts in zip(samples, found[f"autoselect@{budget}#0"], strict=True):
            for turn, reply in enumerate(texts):
                prompt = asked.prompt(1, sample.asked(turn))
                inputs = vlm.inputs([sample.images], [prompt])
                options = {"max_new_tokens": 3, "do_sample": False}
                assert asked.generate(inputs, None, options) == [reply.text]
        detach(vlm.model)


@pytest.mark.parametrize("name", ["idefics3", "qwen2_5_vl", "qwen3_vl"])
def test_the_timed_calls_are_those_of_users(name):
    """The full prefill is the untouched model, the pruned one the attached model."""
    vlm = FrozenVLM(model_of(name), getattr(tiny_processors, name)(), name)
    selector = Selector(Scorer(WIDTH, ScorerConfig(hidden_size=16, num_heads=2))).eval()
    image, question = make_scene(0, "test", 0).image, "what ?"
    with torch.inference_mode():
        prompt = Prompt.of(vlm, image, question, 1)
        calls = full_calls(vlm, prompt) | pruned_calls(vlm, selector, prompt, (2,))
        found = {}
        for stage, call in calls.items():
            with call.around():
                found[stage] = call.run()
        stock = vlm.model(**prompt.inputs).logits[:, -1]
        attach(vlm.model, selector, 2)
        pruned = vlm.model(**prompt.inputs).logits[:, -1]
        detach(vlm.model)
    torch.testing.assert_close(found["full_prefill"].logits[:, -1], stock)
    torch.testing.assert_close(found["prefill@2"].logits[:, -1], pruned)
    assert not torch.allclose(pruned, stock)
    for stage in ("full_first_token", "first_token@2"):
        assert found[stage].shape[1] == prompt.inputs["input_ids"].shape[1] + 1


@pytest.fixture(params=["idefics3", "qwen2_5_vl", "qwen3_vl"])
def other_family(request, monkeypatch, shards, tmp_path):
    """Return settings that evaluate a tiny model of another family."""
    name = request.param
    torch.manual_seed(0)
    selector = Selector(Scorer(WIDTH, ScorerConfig(hidden_size=16, num_heads=2))).eval()
    vlm = FrozenVLM(model_of(name), getattr(tiny_processors, name)(), name)
    loaded = {"autoselect": selector}
    monkeypatch.setattr(run, "load_selectors", lambda *_: (vlm, loaded))
    settings = EvalSettings(name, "s", shards, "25%,100%", str(tmp_path / "out"), tracking=False)
    return dataclasses.replace(settings, methods="random,grid,divprune", random_seeds=1)


def test_families_with_prompts_of_their_own_are_evaluated(other_family):
    assert evaluate(other_family) is not None
    out = Path(other_family.out)
    report = json.loads((out / "report.json").read_text())
    check_report(report)
    count = report["num_tokens"]
    assert {row["budget"] for row in report["rows"]} == {round(0.25 * count), count}
    assert {row["method"] for row in report["rows"]} == {"autoselect", "random", "grid", "divprune"}
    for line in (out / "predictions.jsonl").read_text().splitlines():
        given = json.loads(line)["predictions"]
        assert given[f"autoselect@{count}#0"] == given["full@0#0"], "K = N is the untouched model"
    for row in report["latency"]["pruned"]:
        assert row["prefill_ms"] > 0 and row["selector_ms"] > 0 and row["speedup"] > 0
    few, full = report["latency"]["pruned"][0], report["latency"]["full"]
    assert few["kv_cache_bytes"] < full["kv_cache_bytes"]
    assert (out / "figures" / "retention.png").is_file() and (out / "report.html").is_file()


def test_all_methods_that_a_family_can_have_are_run(other_family):
    evaluate(dataclasses.replace(other_family, methods="all", budgets="25%", max_images=2))
    report = json.loads((Path(other_family.out) / "report.json").read_text())
    run_methods = {row["method"] for row in report["rows"]}
    plain = {"random", "grid", "pooling", "norm", "divprune", "cdpruner", "fastv"}
    assert run_methods >= {"autoselect", *plain}
    left_out = {row["method"] for row in report["left_out"]}
    assert left_out | run_methods == {"autoselect", *METHODS}
    assert all(row["reason"] for row in report["left_out"])


def test_what_a_family_lacks_is_refused_by_name(other_family):
    if other_family.model == "idefics3":
        pytest.skip("its tower has attention maps")
    with pytest.raises(ConfigError, match="methods=visionzip: .* attention can be read"):
        evaluate(dataclasses.replace(other_family, methods="visionzip"))


@pytest.mark.parametrize("method", ["autoselect", "divprune"])
def test_likelihoods_are_those_of_the_pruned_prompt(other_family, method):
    """Rows of several lengths together, against each alone and written token by token."""
    vlm, loaded = run.load_selectors()
    asked, samples = AskedVLM(vlm), list(EvaluationSet.open(other_family.shards))[:2]
    chosen = METHODS.get(method) or selector_method(loaded["autoselect"])
    encoded = asked.encode(samples)
    texts = [[5, 6], [7]]

    def scored(places, continuations):
        prompts = asked.prompts(samples, encoded, places)
        kept = [c.positions for c in choose(chosen, prompts.images, lambda count: count // 4)]
        return continuation_log_likelihood(
            vlm.model, asked.call(prompts, encoded), kept, continuations
        )

    together = scored([(0, 0), (1, 1)], texts)
    for row, place in enumerate([(0, 0), (1, 1)]):
        alone = scored([place], [texts[row]])
        torch.testing.assert_close(alone.sums[0], together.sums[row], rtol=1e-4, atol=1e-4)


def test_analyses_of_rasters_are_refused_by_name(other_family, monkeypatch, tmp_path):
    vlm, loaded = run.load_selectors()
    monkeypatch.setattr(command, "load_pair", lambda *_: (vlm, loaded["autoselect"]))
    words = ["analyse", "frequency", "--model", "m", "--selector", "s", "--budgets", "25%"]
    words += ["--shards", other_family.shards, "--out", str(tmp_path)]
    arguments = cli.parser("analyse").parse_args(words)
    with pytest.raises(ConfigError, match="frequency needs a model whose images all have the same"):
        arguments.run(arguments)


@pytest.fixture
def pairs_and_singles(tmp_path):
    """Return questions about two images beside questions about one."""
    with ShardWriter(str(tmp_path / "pairs")) as writer:
        for index, count in enumerate((1, 2, 2)):
            scenes = [make_scene(0, "test", 10 * index + place) for place in range(count)]
            turns = [
                {"from": "human", "value": " and ".join(["<image>"] * count) + " have a circle ?"},
                {"from": "gpt", "value": "yes"},
                {"from": "human", "value": "which colour ?"},
                {"from": "gpt", "value": "red"},
            ]
            record = {"id": str(index), "conversations": turns}
            writer.write(f"{index:04d}", record, [to_jpeg(scene.image) for scene in scenes])
    return str(tmp_path / "pairs")


def test_questions_about_several_images(
    model_folder, selector_folder, pairs_and_singles, tmp_path, monkeypatch
):
    """A budget holds for each image, and all of them reach the model."""
    seen = []
    real = FrozenVLM.inputs

    def inputs(vlm, images, texts, names=None):
        encoded = real(vlm, images, texts, names)
        counts = (encoded["input_ids"] == vlm.adapter.image_token_id).sum(dim=1).tolist()
        seen.append((sorted(len(row) for row in images), sorted(counts)))
        return encoded

    monkeypatch.setattr(FrozenVLM, "inputs", inputs)
    out = tmp_path / "out"
    settings = EvalSettings(
        model_folder, selector_folder, pairs_and_singles, "8,144", str(out), tracking=False
    )
    settings = dataclasses.replace(settings, methods="random,divprune", random_seeds=1)
    assert evaluate(settings) is not None
    asked_together = [counts for rows, counts in seen if rows == [1, 1, 2, 2, 2, 2]]
    assert asked_together and all(c == [144, 144, 288, 288, 288, 288] for c in asked_together)
    single, pair, _ = EvaluationSet.open(pairs_and_singles)
    assert pair.questions[0] == "and  have a circle ?", "as reports show it"
    assert pair.asked(0) == "<image> and <image> have a circle ?", "as the model is asked it"
    assert single.asked(0) == single.questions[0] == "have a circle ?"
    check_report(json.loads((out / "report.json").read_text()))
    for line in (out / "predictions.jsonl").read_text().splitlines():
        given = json.loads(line)["predictions"]
        for method in ("autoselect", "random", "divprune"):
            assert given[f"{method}@144#0"] == given["full@0#0"], "K = N is the untouched model"
    likely = {"scoring": "likelihood", "out": str(tmp_path / "likely"), "budgets": "8"}
    assert evaluate(dataclasses.replace(settings, **likely)) is not None
    words = ("--model", model_folder, "--selector", selector_folder)
    words = ("analyse", "similarity", *words, "--shards", pairs_and_singles, "--out", str(out))
    arguments = cli.parser("analyse").parse_args(list(words))
    with pytest.raises(ConfigError, match="samples of several images; this analysis looks at"):
        arguments.run(arguments)
